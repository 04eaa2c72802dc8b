"""Attention of a matcher in pairs of photos: weights by layer and head, small enough for a page."""

import base64
import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from models.ingredient import get_model
from models.network import RerankingNetwork
from models.settings import MODEL_RULES
from report.evaluated import Evaluated, check_md5, first_existing
from sop.images.photo import jpeg, opened
from sop.images.transforms import Resizing, test_transform
from sop.ingredient import DATASET_RULES
from utils.errors import InputError
from utils.io.checkpoint import load_weights
from utils.logs.json_reader import nested
from utils.retrieval.chamfer import token_pairs
from utils.settings import TEXT, check_settings

SIDE = 224  # pixels of a photo, at most
QUALITY = 80
MAX_PATCHES = 1000  # of both photos; six layers of four heads then take 0.1 GB
PATCH_PAIRS = 6  # shown for each layer and head
FULL = 65535  # a weight of 1


class Attention:
    """The matcher of an evaluation. `views` are the photos of all pairs so far, as the network sees them, in base64.

    InputError where the checkpoint is missing, is another one, or does not fit the run's settings.
    """

    def __init__(self, evaluated: Evaluated):
        run, model = evaluated.run, nested(evaluated.run.config, "model")
        path, crop_size = run.config.get("resume"), nested(run.config, "dataset", "crop_size")
        check_settings({"resume": path}, {"resume": TEXT})
        check_settings({"crop_size": crop_size}, {"crop_size": DATASET_RULES["crop_size"]}, "dataset.")
        self.checkpoint = first_existing(run, str(path))
        check_md5(run, str(path), self.checkpoint)
        self.model = _load(self.checkpoint, model)
        self.embed = self.model.embedder()
        self.transform = test_transform(
            int(crop_size),  # type: ignore[call-overload]
            resizing=Resizing(**self.model.backbone.resizing),
        )
        self.size = 0  # bytes of views and weights in the page
        self.views: list[str] = []
        self.view_of: dict[Path, int] = {}
        self.maps: list[Tensor] = []

    @torch.inference_mode()
    def of_pair(self, query: Path, candidate: Path) -> dict[str, Any]:
        """The views of a query and a candidate, their grids of patches, the logit, and the attention.

        `weights` are the readout's attention weights times FULL, uint16 (layers, 1 + heads, L), little-endian, in
        base64; head 0 is the mean of all. `pairs` lists the `mutual_pairs` of each layer and head, without the last
        layer: its patches are not read out. `matches` are the PATCH_PAIRS pairs of patches that add most to the Chamfer
        similarity, with what they add. InputError for a photo that cannot be read.
        """
        views = [self._view(path) for path in (query, candidate)]
        maps = [self.maps[view] for view in views]
        if sum(part.shape[2] * part.shape[3] for part in maps) > MAX_PATCHES:
            raise InputError(f"attention is shown for at most {MAX_PATCHES} patches, take a smaller dataset.crop_size")
        tokens = self.model.matcher.encode_queries(maps[0]), self.model.matcher.encode_candidates(maps[1])
        weights = self.model.matcher.attention(*tokens)[0]
        weights = torch.cat((weights.mean(dim=1, keepdim=True), weights), dim=1)  # (layers, 1 + heads, L, L)
        readout = (weights[:, :, 0] * FULL).round().numpy().astype("<u2")
        n = tokens[0].shape[1]
        pair = {
            "views": views,
            "grids": [list(part.shape[2:]) for part in maps],
            "layers": len(weights),
            "heads": weights.shape[1] - 1,
            "weights": base64.b64encode(readout.tobytes()).decode(),
            "pairs": [[mutual_pairs(head, n) for head in layer] for layer in weights[:-1]],
            "matches": [(i, j, round(share, 4)) for i, j, _, share in token_pairs(*maps)[:PATCH_PAIRS]],
            "logit": round(self.model.matcher.score(*tokens).item(), 4),
        }
        self.size += len(json.dumps(pair))
        return pair

    def _view(self, path: Path) -> int:
        """The index of a photo's view. The photo is embedded at its first use."""
        if path not in self.view_of:
            with opened(path) as photo:
                pixels = self.transform(photo)
            image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
            image.thumbnail((SIDE, SIDE))
            self.view_of[path] = len(self.views)
            self.views.append(jpeg(image, QUALITY))
            self.size += len(self.views[-1])
            self.maps.append(self.embed(pixels[None])[1])
        return self.view_of[path]


def mutual_pairs(weights: Tensor, n: int) -> list[tuple[int, int, float]]:
    """The PATCH_PAIRS pairs (query patch, candidate patch, weight) that attend most to each other.

    `weights` (L, L) are of `[CLS]`, n query patches, `[SEP]`, candidate patches. A pair's weight is the smaller one of
    its two directions.
    """
    mutual = torch.minimum(weights[1 : n + 1, n + 2 :], weights[n + 2 :, 1 : n + 1].T)
    values, flat = mutual.flatten().topk(min(PATCH_PAIRS, mutual.numel()))
    rows, columns = np.unravel_index(flat.numpy(), mutual.shape)
    return [
        (int(row), int(column), round(value, 4))
        for row, column, value in zip(rows, columns, values.tolist(), strict=True)
    ]


def _load(path: Path, settings: object) -> RerankingNetwork:
    """The network of a checkpoint, on the CPU; InputError where it does not fit the `model` settings of a run."""
    given: dict[str, Any] = settings if isinstance(settings, dict) else {}
    check_settings({name: given.get(name) for name in MODEL_RULES}, MODEL_RULES, "model.")
    shape = {name: given[name] for name in MODEL_RULES} | {"pretrained": False, "ert_seq_len": None}
    with contextlib.redirect_stdout(io.StringIO()):  # it would report the classifier, of another number of classes
        model = get_model(1, **shape)
        origin = load_weights(path, model, training=False, settings=given)
    if origin.matcher_trained is False:
        raise InputError(f"checkpoint {path} has a matcher that was never trained: experiment_rerank.py trains it")
    return model.eval()
