"""The library's face: a trained network that embeds images, scores pairs of them and ranks candidates."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from models.resnet import RerankingResNet
from rrt.images import Photo, as_list, pixels_of
from rrt.pretrained import CROP_SIZE, load, save
from sop.transforms import test_transform
from utils.chamfer import Chamfer
from utils.embedding import InPieces
from utils.errors import InputError
from utils.fusion import Candidates, Ranking, Weights, candidate_cosines, ranking_by
from utils.precision import float32_throughout
from utils.reranking import pair_scores
from utils.settings import number

IMAGES_READ = 64  # whose pixels are in memory at a time: of 224 x 224, 10 MB
WEIGHT = number(0, 1_000_000)
Fusion = Sequence[float] | None


class Features(NamedTuple):
    """What the network answers for n images: descriptors (n, dg), of length 1, and local maps (n, dl, h, w), float32.

    Arrays of numpy do as well.
    """

    descriptors: Any
    maps: Any


class Match(NamedTuple):
    """A candidate: its position among those that were given, the score that ranks it, and two it is made of."""

    index: int  # type: ignore[assignment]  # a tuple's method has the name, too
    score: float
    logit: float  # of the matcher
    cosine: float  # of the global descriptors


Images = Photo | Sequence[Photo] | Features


class Reranker:
    """A trained network in eval mode. Any number of threads may use one; a computation waits for the one before.

    Nothing is printed, and no file written but by `save_pretrained` and where `from_pretrained` fetches one. All is
    computed in float32, without TF32, whatever torch is set to; while it is, torch's settings are the library's.

    Images are paths, PIL images, uint8 arrays (h, w) or (h, w, 3), or tensors (3, h, w), uint8 or floats from 0 to 1,
    of any size: each is resized and cropped as in the evaluation. `Features`, which `embed` returns, do for images
    everywhere. A pair's score is the matcher's logit, or with `fusion=(w, v)` `logit + w * cosine + v * Chamfer`, where
    cosine is that of the global descriptors and Chamfer the similarity of the local maps.

    InputError, a ValueError, tells what is wrong with what was given.
    """

    @float32_throughout()
    def __init__(
        self,
        network: RerankingResNet,
        settings: Mapping[str, Any],
        crop_size: int = CROP_SIZE,
        device: torch.device | str | None = None,
    ):
        """`settings` are those that `network` was made with, `crop_size` the pixels of a side of what it sees.

        `device` None: CUDA where there is a device, else the CPU.
        """
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if self.device.type not in ("cpu", "cuda"):
            raise InputError(f"device={str(self.device)!r}: give 'cpu' or 'cuda', nothing else has been tried")
        self.network = network.eval().requires_grad_(False)
        self.network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.settings, self.crop_size = dict(settings), crop_size
        self._embedder, self._transform = network.embedder(), test_transform(crop_size)

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

    def embed(self, images: Photo | Sequence[Photo], progress: bool = False) -> Features:
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

        return Features(*InPieces(embed, self.device)(pixels))

    def score(self, a: Images, b: Images, fusion: Fusion = None) -> Tensor:
        """Scores float32 (n,) of n pairs: queries `a`, candidates `b`, image by image."""
        first, second = self._features(a), self._features(b)
        if len(first.descriptors) != len(second.descriptors):
            raise InputError(
                f"{len(first.descriptors)} and {len(second.descriptors)} images are no pairs: give as many of each"
            )
        if not len(first.descriptors):
            return first.descriptors.new_empty(0)
        # of each row one candidate: its own
        ranking = self.rerank(first, second, np.arange(len(first.descriptors))[:, None], fusion)
        return torch.from_numpy(ranking.scores[:, 0])

    def rank(self, query: Images, candidates: Images, top_k: int | None = None, fusion: Fusion = None) -> list[Match]:
        """The `top_k` best candidates of one query, or all, best first; none where there are no candidates."""
        of_query, gallery = self._features(query), self._features(candidates)
        if len(of_query.descriptors) != 1:
            raise InputError(f"{len(of_query.descriptors)} queries: rank takes one, rerank any number")
        if top_k is not None and (not isinstance(top_k, int) or top_k < 1):
            raise InputError(f"top_k={top_k!r}: give a whole number from 1, or None for all")
        if not len(gallery.descriptors):
            return []
        scored = self._scored(of_query, gallery, torch.from_numpy(np.arange(len(gallery.descriptors))[None]), fusion)
        assert scored.logits is not None
        (scores,), (positions,) = ranking_by(scored, _weights(fusion, scored.cosines.shape[1]))
        logits, cosines = scored.logits[0], scored.cosines[0]
        return [
            Match(index, score, float(logits[index]), float(cosines[index]))
            for index, score in zip(positions[:top_k].tolist(), scores[:top_k].tolist(), strict=True)
        ]

    def rerank(
        self, queries: Features, gallery: Features, neighbours: np.ndarray | Tensor, fusion: Fusion = None
    ) -> Ranking:
        """One's own search results in a new order: `scores` float32 (n, k), falling, and gallery `positions` (n, k).

        `neighbours` (n, k) holds each query's candidates, as positions in the gallery, of whatever search. The matcher
        reads local maps, so queries and gallery are `Features` with both: of numpy or torch, from `embed`. Equal scores
        keep their order. InputError for features of another network, and for positions outside the gallery.
        """
        queries = self._features(queries)
        gallery = gallery if isinstance(gallery, Features) else self.embed(gallery)
        positions = _positions(neighbours, len(queries.descriptors), len(gallery.descriptors))
        weights = _weights(fusion, positions.shape[1])
        rows, places = positions.unique(return_inverse=True)
        candidates = self._features(gallery, rows)  # a gallery may be large, and in a file
        if not positions.numel():
            return Ranking(np.empty(positions.shape, np.float32), positions.numpy())
        ranking = ranking_by(self._scored(queries, candidates, places, fusion), weights)
        return ranking._replace(positions=rows.numpy()[ranking.positions])

    @float32_throughout()
    def _scored(self, queries: Features, gallery: Features, positions: Tensor, fusion: Fusion) -> Candidates:
        with_chamfer = _weights(fusion, positions.shape[1]).chamfer > 0
        scorers = [self.network.matcher, *([Chamfer()] if with_chamfer else [])]
        logits, *chamfer = pair_scores(
            self.network, queries.maps, gallery.maps, positions, scorers, with_progress=False
        )
        cosines = candidate_cosines(queries.descriptors, gallery.descriptors, positions)
        similarities = chamfer[0].numpy() if chamfer else np.zeros_like(cosines)
        return Candidates(positions.numpy(), cosines, similarities, logits.numpy())

    def _features(self, images: Images, rows: Tensor | None = None) -> Features:
        """Features as float32 tensors, of some rows or all, those of images computed; InputError for those of another
        network."""
        if not isinstance(images, Features):
            return self.embed(images)
        descriptors, maps = images.descriptors, images.maps
        shape = tuple(maps.shape)
        expected = self._nothing()
        sizes = descriptors.shape[1:], shape[1:2], len(shape), len(descriptors)
        if sizes != (expected.descriptors.shape[1:], expected.maps.shape[1:2], 4, shape[0]):
            raise InputError(
                f"features of descriptors {tuple(descriptors.shape)} and maps {shape} are not of this network: "
                f"expected (n, {expected.descriptors.shape[1]}) and (n, {expected.maps.shape[1]}, h, w)"
            )
        return Features(*(_float32(part if rows is None else part[rows.numpy()]) for part in (descriptors, maps)))

    @float32_throughout()
    def _nothing(self) -> Features:
        """Features of no image."""
        side = -(-self.crop_size // 32)
        settings = self.settings
        return Features(
            torch.empty(0, settings["num_global_features"]), torch.empty(0, settings["num_local_features"], side, side)
        )


def _weights(fusion: Fusion, num_candidates: int) -> Weights:
    if fusion is None:
        return Weights(1, 0, 0, num_candidates)
    if not isinstance(fusion, Sequence) or len(fusion) != 2 or not all(map(WEIGHT.accepts, fusion)):
        raise InputError(f"fusion={fusion!r}: give None, or (w, v), two numbers from 0 to 1,000,000")
    cosine, chamfer = fusion
    return Weights(1, cosine, chamfer, num_candidates)


def _positions(neighbours: np.ndarray | Tensor, queries: int, images: int) -> Tensor:
    positions = torch.as_tensor(neighbours, device="cpu")
    if positions.dim() != 2 or len(positions) != queries or positions.is_floating_point():
        raise InputError(
            f"neighbours {tuple(positions.shape)} of {positions.dtype}: give whole numbers ({queries}, k), a row "
            "for each query"
        )
    positions = positions.to(torch.int64)
    if positions.numel() and not 0 <= positions.min() <= positions.max() < images:
        raise InputError(
            f"neighbours hold {int(positions.min())} to {int(positions.max())}, but the gallery has {images} images, "
            "numbered from 0"
        )
    return positions


def _float32(rows: np.ndarray | Tensor) -> Tensor:
    if isinstance(rows, np.ndarray):
        rows = np.require(rows, requirements="W")  # torch warns of what may not be written
    numbers = torch.as_tensor(rows, device="cpu").detach()
    if numbers.dtype == torch.uint16:
        numbers = numbers.view(torch.bfloat16)  # whose bits numpy has no other type for
    if not numbers.is_floating_point():
        raise InputError(f"features of {numbers.dtype}: give floating-point numbers")
    return numbers.to(torch.float32)
