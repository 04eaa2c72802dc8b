"""An index of photos, searched: by the cosine of descriptors, and the first candidates by the matcher."""

from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rrt.arguments import Fusion
from rrt.features import Features
from rrt.index_folder import own_reranker, part_of, read_content
from rrt.indexing import Update, update
from utils.errors import InputError
from utils.runtime.precision import float32_throughout
from utils.store.array_file import StoredRows

__all__ = ["Found", "Index", "Update", "update"]
OPEN_PARTS = 256  # files at a time


class Found(NamedTuple):
    """A photo of the index, for a query; without reranking there is no logit, and the cosine is the score."""

    photo: str
    score: float | None  # None: behind the candidates that were rescored
    logit: float | None
    cosine: float  # from -1 to 1
    rank_by_cosine: int  # from 1
    stamp: tuple[int, int, int]  # of the file that was embedded


class Index:
    """An index that is searched, as it is now; `reranker` is its network. InputError where it is damaged."""

    @float32_throughout()
    def __init__(self, folder: Path, device: torch.device | str | None = None):
        self.folder, self.content = folder, read_content(folder)
        self.photos = self.content.photos
        if not self.photos:
            raise InputError(f"{folder} has no photos: index some")
        self.reranker = own_reranker(folder, self.content.model, device)
        self.parts = np.array([photo.part for photo in self.photos])
        self.rows = np.array([photo.row for photo in self.photos])
        of_parts = {number: self._rows_of(number, "descriptors")[:] for number in self.content.parts}
        self.descriptors = torch.stack([of_parts[photo.part][photo.row] for photo in self.photos])
        self._maps = lru_cache(OPEN_PARTS)(partial(self._rows_of, name="maps"))

    def _rows_of(self, part: int, name: str) -> StoredRows:
        """A tensor of a part, once it is found to be whole."""
        store = part_of(self.folder, self.content, part)
        if store.count_valid_rows([name]) < self.content.parts[part]:
            if read_content(self.folder) != self.content:
                raise InputError(f"{self.folder} has been indexed again meanwhile: search again")
            raise InputError(f"{store.folder} is damaged: run `python -m rrt index` again, which makes it anew")
        return store.tensors[name]

    @float32_throughout()
    def search(self, queries: Features, top: int, rerank: int = 0, fusion: Fusion = None) -> list[list[Found]]:
        """The `top` photos for each query, best first: by cosine, the first `rerank` of them by `Reranker.rank`."""
        kept = min(max(top, rerank), len(self.photos))
        cosines, positions = (queries.descriptors @ self.descriptors.T).topk(kept)
        return [
            self._ranked(Features(*query), own_cosines, own_positions, rerank, fusion)[:top]
            for *query, own_cosines, own_positions in zip(
                queries.descriptors[:, None],
                queries.maps[:, None],
                cosines.clamp(-1, 1).tolist(),  # rounding leads beyond
                positions,
                strict=True,
            )
        ]

    def _ranked(
        self, query: Features, cosines: list[float], positions: Tensor, rerank: int, fusion: Fusion
    ) -> list[Found]:
        photos = [self.photos[position] for position in positions.tolist()]
        found = [
            Found(photo.path, None if rerank else cosine, None, cosine, rank, photo.stamp)
            for rank, (photo, cosine) in enumerate(zip(photos, cosines, strict=True), start=1)
        ]
        if not rerank:
            return found
        rescored = positions[:rerank]
        gallery = Features(self.descriptors[rescored], self._maps_of(rescored.numpy()))
        matches = self.reranker.rank(query, gallery, fusion=fusion)
        ranked = [found[match.index]._replace(score=match.score, logit=match.logit) for match in matches]
        return ranked + found[rerank:]

    def _maps_of(self, positions: np.ndarray) -> Tensor:
        """The local maps of some photos."""
        parts, rows = self.parts[positions], self.rows[positions]
        maps = self._maps(int(parts[0])).empty_rows(len(positions))
        for number in np.unique(parts).tolist():
            own = np.flatnonzero(parts == number)
            own = own[rows[own].argsort()]
            stored = self._maps(number)
            maps[torch.from_numpy(own)] = stored.read(rows[own], stored.empty_rows(len(own)))
        return maps
