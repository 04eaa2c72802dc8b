"""Search in an index of photos: by the cosine of descriptors; the first candidates are reranked by the matcher."""

from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rrt.arguments import FITTED, Fusion
from rrt.features import Features
from rrt.index_folder import own_reranker, part_of, read_content
from rrt.indexing import Update, update
from utils.errors import InputError
from utils.runtime.precision import float32_throughout
from utils.store.array_file import StoredRows

__all__ = ["Index", "Result", "Update", "update"]
MAX_OPEN_PARTS = 256  # files
NUM_CANDIDATES = 100  # to be reranked, as published


class Result(NamedTuple):
    """A photo of the index, for a query. Without reranking the logit is None, and the score is the cosine."""

    photo: str
    score: float | None  # None behind the reranked photos
    logit: float | None  # None where the ranking does without it
    cosine: float  # from -1 to 1
    rank_by_cosine: int  # from 1
    stamp: tuple[int, int, int]  # of the file that was embedded
    probability: float | None = None  # that both show one product; None where the score is not calibrated


class Index:
    """An index as it is on the disk now; `reranker` is its network. InputError where it is damaged."""

    @float32_throughout()
    def __init__(self, folder: Path, device: torch.device | str | None = None):
        self.folder, self.content = folder, read_content(folder)
        self.photos = self.content.photos
        if not self.photos:
            raise InputError(f"{folder} has no photos: index some")
        self.reranker = own_reranker(folder, self.content.model, device)
        self.parts = np.array([photo.part for photo in self.photos])
        self.rows = np.array([photo.row for photo in self.photos])
        descriptors = {part: self._rows_of(part, "descriptors")[:] for part in self.content.parts}
        self.descriptors = torch.stack([descriptors[photo.part][photo.row] for photo in self.photos])
        self._maps = lru_cache(MAX_OPEN_PARTS)(partial(self._rows_of, name="maps"))

    def _rows_of(self, part: int, name: str) -> StoredRows:
        """A tensor of a part; InputError where it is damaged."""
        store = part_of(self.folder, self.content, part)
        if store.count_valid_rows([name]) < self.content.parts[part]:
            if read_content(self.folder) != self.content:
                raise InputError(f"{self.folder} was changed during the search: search again")
            raise InputError(f"{store.folder} is damaged: `python -m rrt index` embeds its photos again")
        return store.tensors[name]

    def num_candidates(self) -> int:
        """As many as the weights of the ranking were fitted for."""
        weights = self.reranker.own_weights
        return NUM_CANDIDATES if weights is None else weights.num_candidates

    @float32_throughout()
    def search(self, queries: Features, top: int, rerank: int = 0, fusion: Fusion = FITTED) -> list[list[Result]]:
        """The `top` photos for each query, best first: by cosine, the first `rerank` of them by `Reranker.rank`."""
        num_candidates = min(max(top, rerank), len(self.photos))
        cosines, positions = (queries.descriptors @ self.descriptors.T).topk(num_candidates)
        return [
            self._ranked(Features(*query), query_cosines, query_positions, rerank, fusion)[:top]
            for *query, query_cosines, query_positions in zip(
                queries.descriptors[:, None],
                queries.maps[:, None],
                cosines.clamp(-1, 1).tolist(),  # against rounding
                positions,
                strict=True,
            )
        ]

    def _ranked(
        self, query: Features, cosines: list[float], positions: Tensor, rerank: int, fusion: Fusion
    ) -> list[Result]:
        photos = [self.photos[position] for position in positions.tolist()]
        results = [
            Result(photo.path, None if rerank else cosine, None, cosine, rank, photo.stamp)
            for rank, (photo, cosine) in enumerate(zip(photos, cosines, strict=True), start=1)
        ]
        if not rerank:
            return results
        reranked = positions[:rerank]
        gallery = Features(self.descriptors[reranked], self._maps_of(reranked.numpy()))
        matches = self.reranker.rank(query, gallery, fusion=fusion)
        ranked = [
            results[match.index]._replace(score=match.score, logit=match.logit, probability=match.probability)
            for match in matches
        ]
        return ranked + results[rerank:]

    def _maps_of(self, positions: np.ndarray) -> Tensor:
        """The local maps of the photos at `positions`."""
        parts, rows = self.parts[positions], self.rows[positions]
        maps = self._maps(int(parts[0])).empty_rows(len(positions))
        for part in np.unique(parts).tolist():
            in_part = np.flatnonzero(parts == part)
            in_part = in_part[rows[in_part].argsort()]
            stored = self._maps(part)
            maps[torch.from_numpy(in_part)] = stored.read(rows[in_part], stored.empty_rows(len(in_part)))
        return maps
