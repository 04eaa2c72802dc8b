"""What a matcher attends to in pairs of photos: weights by layer and head, small enough for a page."""

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
from models.network import MODEL_RULES, RerankingNetwork
from report.evaluated import Evaluated, check_is_noted, first_existing
from sop.images.photo import jpeg, opened
from sop.images.transforms import test_transform
from sop.ingredient import DATASET_RULES
from utils.errors import InputError
from utils.io.checkpoint import load_weights
from utils.logs.json_reader import nested
from utils.settings import TEXT, check_settings

SIDE = 224  # pixels of a photo, at most
QUALITY = 80
MOST_PATCHES = 1000  # of both photos: six layers of four heads then take 0.1 GB
PATCH_PAIRS = 6  # of each layer and head
FULL = 65535  # a weight of 1


class Attention:
    """The matcher of an evaluation, and the photos that it has been shown.

    `views` are these photos as the network sees them; InputError where the network cannot be had.
    """

    def __init__(self, evaluated: Evaluated):
        run, model = evaluated.run, nested(evaluated.run.config, "model")
        path, crop_size = run.config.get("resume"), nested(run.config, "dataset", "crop_size")
        check_settings({"resume": path}, {"resume": TEXT})
        check_settings({"crop_size": crop_size}, {"crop_size": DATASET_RULES["crop_size"]}, "dataset.")
        self.checkpoint = first_existing(run, str(path))
        check_is_noted(run, str(path), self.checkpoint)
        self.model = _load(self.checkpoint, model)
        self.embed = self.model.embedder()
        self.transform = test_transform(int(crop_size), **self.model.backbone.resizing)  # type: ignore[call-overload]
        self.size = 0  # of views and weights, in bytes
        self.views: list[str] = []
        self.numbers: dict[Path, int] = {}
        self.maps: list[Tensor] = []

    @torch.inference_mode()
    def of_pair(self, query: Path, candidate: Path) -> dict[str, Any]:
        """The views of a query and a candidate, their grids of patches, and the logit; and layer by layer, for the mean
        of heads and each head, the readout's `weights` and the `pairs` of patches that attend most to each other.

        `weights` are uint16 (layers, 1 + heads, L) in base64, little-endian, of FULL. `pairs` are lists of (query
        patch, candidate patch, weight), the smaller one of both directions, but for the last layer, whose patches are
        not read out. InputError for a photo that cannot be read.
        """
        views = [self._view(path) for path in (query, candidate)]
        maps = [self.maps[view] for view in views]
        if sum(part.shape[2] * part.shape[3] for part in maps) > MOST_PATCHES:
            raise InputError(f"attention is shown for at most {MOST_PATCHES} patches, take a smaller dataset.crop_size")
        tokens = self.model.matcher.encode_queries(maps[0]), self.model.matcher.encode_candidates(maps[1])
        weights = self.model.matcher.attention(*tokens)[0]
        weights = torch.cat((weights.mean(dim=1, keepdim=True), weights), dim=1)  # (layers, 1 + heads, L, L)
        readout = (weights[:, :, 0] * FULL).round().numpy().astype("<u2")
        n = tokens[0].shape[1]
        found = {
            "views": views,
            "grids": [list(part.shape[2:]) for part in maps],
            "layers": len(weights),
            "heads": weights.shape[1] - 1,
            "weights": base64.b64encode(readout.tobytes()).decode(),
            "pairs": [[mutual_pairs(head, n) for head in layer] for layer in weights[:-1]],
            "logit": round(self.model.matcher.score(*tokens).item(), 4),
        }
        self.size += len(json.dumps(found))
        return found

    def _view(self, path: Path) -> int:
        """The number of a photo's view; it is embedded the first time."""
        if path not in self.numbers:
            with opened(path) as photo:
                pixels = self.transform(photo)
            image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
            image.thumbnail((SIDE, SIDE))
            self.numbers[path] = len(self.views)
            self.views.append(jpeg(image, QUALITY))
            self.size += len(self.views[-1])
            self.maps.append(self.embed(pixels[None])[1])
        return self.numbers[path]


def mutual_pairs(weights: Tensor, n: int) -> list[tuple[int, int, float]]:
    """(query patch, candidate patch, weight) of the PATCH_PAIRS largest weights, the smaller one of both directions, in
    attention (L, L) of `[CLS]`, n query patches, `[SEP]`, candidate patches."""
    mutual = torch.minimum(weights[1 : n + 1, n + 2 :], weights[n + 2 :, 1 : n + 1].T)
    values, flat = mutual.flatten().topk(min(PATCH_PAIRS, mutual.numel()))
    rows, columns = np.unravel_index(flat.numpy(), mutual.shape)
    return [
        (int(row), int(column), round(value, 4))
        for row, column, value in zip(rows, columns, values.tolist(), strict=True)
    ]


def _load(path: Path, settings: object) -> RerankingNetwork:
    """The network of a checkpoint, on the CPU; InputError where it does not fit the `model` settings of a run."""
    known: dict[str, Any] = settings if isinstance(settings, dict) else {}
    check_settings({name: known.get(name) for name in MODEL_RULES}, MODEL_RULES, "model.")
    shape = {name: known[name] for name in MODEL_RULES} | {"pretrained": False, "ert_seq_len": None}
    with contextlib.redirect_stdout(io.StringIO()):  # the classifier, which has another number of classes
        model = get_model(1, **shape)
        origin = load_weights(path, model, training=False, settings=known)
    if origin.matcher_trained is False:
        raise InputError(f"checkpoint {path} has a matcher that was never trained: experiment_rerank.py trains it")
    return model.eval()
