"""The library's face: a trained network that embeds images, scores pairs of them and ranks candidates."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from models.network import RerankingNetwork
from rrt.arguments import TOP_K, Fusion, device_of, positions_of, weights_of
from rrt.features import Features, are_features, as_float32
from rrt.images import NEEDS_MAPS, Photo, as_list, pixels_of
from rrt.pretrained import CROP_SIZE, load, save
from sop.images.transforms import test_transform
from utils.errors import InputError
from utils.retrieval.chamfer import Chamfer
from utils.retrieval.pair_scoring import Scorer, pair_scores
from utils.retrieval.ranking import Candidates, Ranking, candidate_cosines, ranking_by
from utils.runtime.device import MicroBatches
from utils.runtime.precision import float32_throughout
from utils.settings import check_settings, plain

IMAGES_READ = 64  # whose pixels are in memory at a time: of 224 x 224, 10 MB


class Match(NamedTuple):
    """A candidate: its position among those that were given, the score that ranks it, and two it is made of."""

    index: int  # type: ignore[assignment]  # a tuple's method has the name, too
    score: float
    logit: float  # of the matcher
    cosine: float  # of the global descriptors


Images = Photo | Iterable[Photo] | Features


class Reranker:
    """A trained network in eval mode. Any number of threads may use one; a computation waits for the one before.

    Nothing is printed, and no file written but by `save_pretrained` and where `from_pretrained` fetches one, and shows
    its progress. All is computed in float32, without TF32, whatever torch is set to; while it is, torch's settings are
    the library's.

    Images are paths, PIL images, or arrays and tensors, of uint8 or of floats from 0 to 1: (3, h, w), grey ones
    (1, h, w) or of uint8 (h, w), arrays (h, w, 3), too. Each, of any size, is resized and cropped as in the evaluation.
    `Features`, which `embed` returns, do for images everywhere. A pair's score is the matcher's logit, or with
    `fusion=(w, v)` `logit + w * cosine + v * chamfer`, where cosine is that of the global descriptors and chamfer the
    Chamfer similarity of the local maps.

    InputError, a ValueError, tells what is wrong with what was given.
    """

    @float32_throughout()
    def __init__(
        self,
        network: RerankingNetwork,
        settings: Mapping[str, Any],
        crop_size: int = CROP_SIZE,
        device: torch.device | str | None = None,
    ):
        """`settings` are those that `network` was made with, `crop_size` the pixels of a side of what it sees.

        `device` None: CUDA where there is a device, else the CPU.
        """
        network.backbone.check_crop_size(crop_size)
        self.device = device_of(device)
        self.network = network.eval().requires_grad_(False)
        self.network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.settings, self.crop_size = dict(settings), crop_size
        self._embedder, self._transform = network.embedder(), test_transform(crop_size, **network.backbone.resizing)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        crop_size: int | None = None,
        device: torch.device | str | None = None,
        **settings,
    ) -> "Reranker":
        """A checkpoint of this project or the published ones, a folder that `save_pretrained` has written or a
        repository of the hub with its two files, or 'published', which fetches the published checkpoint.

        `settings` such as arch='resnet18' are needed where a checkpoint does not say its own. `crop_size` None: that of
        the training, or 224 where it is not said.
        InputError where it cannot be had, or where settings do not fit.
        """
        return cls(*load(source, crop_size, settings), device=device)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors` into a folder, which can be a repository of the hub."""
        save(Path(folder), self.network, self.settings, self.crop_size)

    def digest(self) -> str:
        """A SHA-256 sum, in hexadecimal, of all that answers depend on."""
        content = hashlib.sha256(repr((sorted(self.settings.items()), self.crop_size)).encode())
        for name, tensor in self.network.state_dict().items():
            if not name.startswith("classifier."):
                content.update(name.encode())
                content.update(tensor.cpu().contiguous().numpy().tobytes())
        return content.hexdigest()

    def embed(self, images: Photo | Iterable[Photo], progress: bool = False) -> Features:
        """Descriptors (n, dg) and local maps (n, dl, h, w) of images, or of one, on the CPU; `progress` shows a bar.

        InputError, with its position, for an image that cannot be read.
        """
        listed, parts = as_list(images), []
        with tqdm(total=len(listed), desc="Embedding", unit="image", disable=not progress) as shown:
            for start in range(0, len(listed), IMAGES_READ):
                batch = listed[start : start + IMAGES_READ]
                pixels = [self._pixels_of(image, start + i) for i, image in enumerate(batch)]
                parts.append(self.embed_pixels(torch.stack(pixels)))
                shown.update(len(batch))
        return Features(*map(torch.cat, zip(*parts, strict=True))) if parts else self._nothing()

    def pixels(self, image: Photo) -> Tensor:
        """An image as the network sees it, uint8 (3, crop_size, crop_size)."""
        return pixels_of(image, self._transform)

    def _pixels_of(self, image: Photo, position: int) -> Tensor:
        try:
            return self.pixels(image)
        except InputError as error:
            raise InputError(f"image {position}: {error}") from error

    def embed_pixels(self, pixels: Tensor) -> Features:
        """Features of `pixels`, uint8 (n, 3, crop_size, crop_size), a few images at a time."""

        @float32_throughout()
        def embed(piece: Tensor) -> tuple[Tensor, Tensor]:
            descriptors, maps = self._embedder(piece.to(self.device))
            return F.normalize(descriptors, dim=1).cpu(), maps.contiguous().cpu()

        return Features(*MicroBatches(embed, self.device)(pixels))

    def score(self, a: Images, b: Images, fusion: Fusion = None) -> Tensor:
        """Scores float32 (n,) of n pairs: queries `a`, candidates `b`, image by image."""
        first, second = self._features(a), self._features(b)
        if len(first) != len(second):
            raise InputError(f"{len(first)} and {len(second)} images are no pairs: give as many of each")
        if not len(first):
            return first.descriptors.new_empty(0)
        # of each row one candidate: its own
        ranking = self.rerank(first, second, np.arange(len(first))[:, None], fusion)
        return torch.from_numpy(ranking.scores[:, 0])

    def rank(self, query: Images, candidates: Images, top_k: int | None = None, fusion: Fusion = None) -> list[Match]:
        """The `top_k` best candidates of one query, or all, best first; none where there are no candidates."""
        of_query, gallery = self._features(query), self._features(candidates)
        if len(of_query) != 1:
            raise InputError(f"{len(of_query)} queries: rank takes one, rerank any number")
        check_settings({"top_k": plain(top_k)}, {"top_k": TOP_K})
        if not len(gallery):
            return []
        scored = self._scored(of_query, gallery, torch.from_numpy(np.arange(len(gallery))[None]), fusion)
        assert scored.logits is not None
        (scores,), (positions,) = ranking_by(scored, weights_of(fusion, scored.cosines.shape[1]))
        logits, cosines = scored.logits[0], scored.cosines[0]
        return [
            Match(index, score, float(logits[index]), float(cosines[index]))
            for index, score in zip(positions[:top_k].tolist(), scores[:top_k].tolist(), strict=True)
        ]

    def rerank(
        self, queries: Features, gallery: Features, neighbours: np.ndarray | Tensor, fusion: Fusion = None
    ) -> Ranking:
        """One's own search results in a new order: `scores` float32 (n, k), falling, and gallery `positions` (n, k).

        `neighbours` (n, k), or (k,) for one query, holds each query's candidates, as positions in the gallery, of
        whatever search. -1 is no candidate, as faiss fills up shorter rows: it comes behind the others, at a score of
        -inf. The matcher reads local maps, so queries and gallery are `Features` with both: of numpy or torch, from
        `embed`. Equal scores keep their order. InputError for features of another network, and for positions outside
        the gallery.
        """
        queries, gallery = self._features(queries), self._given(gallery)
        positions = positions_of(neighbours, len(queries), len(gallery))
        weights, absent = weights_of(fusion, positions.shape[1]), positions < 0
        if absent.all():
            return Ranking(np.full(positions.shape, -np.inf, np.float32), positions.numpy())
        rows, places = positions.where(~absent, positions.max()).unique(return_inverse=True)
        candidates = self._features(gallery, rows)  # a gallery may be large, and in a file
        scored = self._scored(queries, candidates, places, fusion)
        assert scored.logits is not None
        scored.logits[absent.numpy()] = -np.inf
        ranking = ranking_by(scored, weights)
        found = np.where(np.isneginf(ranking.scores), -1, rows.numpy()[ranking.positions])
        return ranking._replace(positions=found)

    @float32_throughout()
    def _scored(self, queries: Features, gallery: Features, positions: Tensor, fusion: Fusion) -> Candidates:
        with_chamfer = weights_of(fusion, positions.shape[1]).chamfer > 0
        scorers: list[Scorer] = [self.network.matcher, *([Chamfer()] if with_chamfer else [])]
        logits, *chamfer = pair_scores(
            self.network, queries.maps, gallery.maps, positions, scorers, with_progress=False
        )
        cosines = candidate_cosines(queries.descriptors, gallery.descriptors, positions)
        similarities = chamfer[0].numpy() if chamfer else np.zeros_like(cosines)
        return Candidates(positions.numpy(), cosines, similarities, logits.numpy())

    def _given(self, images: Images) -> Features:
        """Features that were given, or those of images that were."""
        if isinstance(images, Features):
            return images
        if isinstance(images, tuple | list) and len(images) == 2 and are_features(images):
            return Features(*images)
        return self.embed(images)

    def _features(self, images: Images, rows: Tensor | None = None) -> Features:
        """Features as float32 tensors, of some rows or all, those of images computed; InputError for those of another
        network, and where they are not finite."""
        features = self._given(images)
        made_by = self.network.settings
        dg, dl = made_by.num_global_features, made_by.num_local_features
        descriptors, maps = (tuple(part.shape) for part in features)
        if (descriptors[1], maps[1]) != (dg, dl):
            raise InputError(
                f"features of descriptors {descriptors} and maps {maps} are not of this network: "
                f"expected (n, {dg}) and (n, {dl}, h, w). {NEEDS_MAPS}"
            )
        features = Features(*map(as_float32, features if rows is None else features[rows.numpy()]))
        for part in features:
            is_finite = part.flatten(1).isfinite().all(dim=1)
            if not is_finite.all():
                row = int(is_finite.int().argmin())
                raise InputError(
                    f"the features of image {row if rows is None else rows[row]} hold NaN or infinite numbers: leave "
                    "it out, or embed it again"
                )
        return features

    def _nothing(self) -> Features:
        """Features of no image, of the shapes that a blank one's have."""
        return self.embed_pixels(torch.zeros(1, 3, self.crop_size, self.crop_size, dtype=torch.uint8))[:0]
