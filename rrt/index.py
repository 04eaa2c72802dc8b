"""Search in an index of photos: by the cosine of descriptors; the first candidates are reranked by the matcher."""

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from rrt.arguments import FITTED, Fusion
from rrt.features import Features
from rrt.index_table import Address, Photo, array_of, content_of, existing_table, own_reranker, photos_of
from rrt.index_upkeep import nearest
from rrt.indexing import Update, update
from rrt.map_codes import decode
from utils.errors import InputError
from utils.runtime.precision import float32_throughout

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Index", "Result", "Update", "update"]
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
    """An index, each search in its newest version; `reranker` is its network. InputError where it is damaged."""

    @float32_throughout()
    def __init__(self, index: Address, device: torch.device | str | None = None):
        self.index, self.table = index, existing_table(index)
        self.content = content_of(self.table)
        if not len(self):
            raise InputError(f"{index} has no photos: index some")
        self.reranker = own_reranker(index, self.content.model, device)

    def __len__(self) -> int:
        """The number of photos."""
        return self.table.count_rows()

    def num_candidates(self) -> int:
        """As many as the weights of the ranking were fitted for."""
        weights = self.reranker.own_weights
        return NUM_CANDIDATES if weights is None else weights.num_candidates

    @float32_throughout()
    def search(
        self, queries: Features, top: int, rerank: int = 0, fusion: Fusion = FITTED, where: str | None = None
    ) -> list[list[Result]]:
        """The `top` photos for each query, best first: by cosine, the first `rerank` of them by `Reranker.rank`.

        `where` is a condition on columns, as in SQL: only photos for which it holds are searched, and exactly.
        """
        queries = self.reranker._checked(queries)
        self.table.checkout_latest()
        if content_of(self.table) != self.content:
            raise InputError(f"{self.index} is of another network, or kind of maps, now: open it again")
        return [self._answer(queries[row], top, rerank, fusion, where) for row in range(len(queries))]

    def _answer(self, query: Features, top: int, rerank: int, fusion: Fusion, where: str | None) -> list[Result]:
        """The results for one query."""
        rows = self._nearest(query.descriptors[0], max(top, rerank, 1), where)
        descriptors = torch.from_numpy(array_of(rows, "descriptor").copy())
        cosines, order = (descriptors @ query.descriptors[0]).sort(descending=True, stable=True)
        rows = rows.take(order.numpy())
        found = zip(photos_of(rows), cosines.clamp(-1, 1).tolist(), strict=True)  # against rounding
        results = [
            Result(photo.path, None if rerank else cosine, None, cosine, rank, photo.stamp)
            for rank, (photo, cosine) in enumerate(found, start=1)
        ]
        if rerank and results:
            gallery = Features(descriptors[order[:rerank]], self._maps_of(rows["_rowid"].to_pylist()[:rerank]))
            is_calibrated = self.content.maps != "binary"  # whose scores are smaller than those of the calibration
            results[:rerank] = [
                results[match.index]._replace(
                    score=match.score, logit=match.logit, probability=match.probability if is_calibrated else None
                )
                for match in self.reranker.rank(query, gallery, fusion=fusion)
            ]
        return results[:top]

    def _nearest(self, descriptor: Tensor, number: int, where: str | None) -> "pa.Table":
        """The rows of the photos nearest to a descriptor, by path."""
        found = nearest(self.table, descriptor.numpy(), number).with_row_id(True)
        if where is not None:
            found = found.where(where).bypass_vector_index()  # which misses photos where few are left
        try:
            return found.select([*Photo._fields, "descriptor", "_distance"]).to_arrow().sort_by("path")
        except Exception as error:
            if where is None or not isinstance(error, ValueError):
                raise self._unreadable(error) from error
            columns = ", ".join(name for name in self.table.schema.names if name not in ("descriptor", "map"))
            raise InputError(f"where={where!r} ({error}): give a condition on {columns}") from error

    def _maps_of(self, ids: list[int]) -> Tensor:
        """The local maps of the photos with these row ids."""
        try:
            rows = self.table.take_row_ids(ids).with_row_id().select(["map"]).to_arrow()
        except Exception as error:
            raise self._unreadable(error) from error
        position = {row: i for i, row in enumerate(rows["_rowid"].to_pylist())}  # they come in any order
        encoded = array_of(rows, "map")[[position[row] for row in ids]]
        return decode(encoded, self.content.maps, self.content.map_shape)

    def _unreadable(self, error: Exception) -> InputError:
        """The engine's error, which may be of any kind, in words."""
        version = self.table.version
        self.table.checkout_latest()
        if self.table.version != version:
            return InputError(f"{self.index} was changed during the search: search again")
        return InputError(f"{self.index} is damaged ({error}): index again into a new folder")
