"""Candidates by the ids of a search engine: where their features come from, and their ranking."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from rrt.features import Features, as_float32
from utils.errors import InputError
from utils.retrieval.ranking import Ranking


class Store(Protocol):
    """Where features are kept by the ids of a search engine: anything that has this method."""

    def features(self, ids: list[Any]) -> Mapping[Any, tuple[Any, Any]]:
        """The features of the images with these ids, which are distinct.

        A descriptor (dg,) and a local map (dl, h, w) for each, as `Reranker.embed` made them, in an array, a tensor or
        lists of floating-point numbers of any precision. An id that is not there is left out.
        """
        ...


class RankedIds(NamedTuple):
    """Candidates by falling score, a list for each query; at its end those without a score."""

    scores: list[np.ndarray]  # float32, as long as the query's ids
    ids: list[list[Any]]
    missing: list[Any]  # ids of any query that the store does not have


def rows_of(ids: Iterable[Iterable[Any]], num_queries: int) -> list[list[Any]]:
    """Ids as lists of Python's own objects; InputError where they are not a list for each query."""
    advice = f"give {num_queries} lists of ids, one for each query; ids are text, numbers or others that can be hashed"
    rows = []
    for row in ids:
        if isinstance(row, str | bytes) or not isinstance(row, Iterable):
            raise InputError(f"ids: {row!r} is no list: {advice}")
        rows.append(row.tolist() if hasattr(row, "tolist") else list(row))
        for id in rows[-1]:
            if not isinstance(id, Hashable):
                raise InputError(f"id {id!r} cannot be hashed: {advice}")
    if len(rows) != num_queries:
        raise InputError(f"ids are {len(rows)} lists: {advice}")
    return rows


def gather(store: Store, rows: list[list[Any]]) -> tuple[list[Any], Features | None]:
    """The ids that a store has, each once, and their features; None for no id."""
    wanted = [id for id in dict.fromkeys(id for row in rows for id in row) if not is_padding(id)]
    found = store.features(wanted) if wanted else {}
    known = [id for id in wanted if id in found]
    if not known:
        return [], None
    parts: list[Sequence[torch.Tensor]] = []
    for id in known:
        parts.append([as_float32(part) for part in found[id]])
        shapes, expected = ([tuple(part.shape) for part in of_id] for of_id in (parts[-1], parts[0]))
        if [len(shape) for shape in shapes] != [1, 3] or shapes != expected:
            raise InputError(
                f"the store has features {shapes} of id {id!r}: give a descriptor (dg,) and a map (dl, h, w), of the "
                f"same shapes for all; those of id {known[0]!r} are {expected}"
            )
        if not all(part.isfinite().all() for part in parts[-1]):
            raise InputError(f"the features of id {id!r} hold NaN or infinite numbers: embed its image again")
    return known, Features(*(torch.stack(part) for part in zip(*parts, strict=True)))


def is_padding(id: Any) -> bool:
    return id is None or id == -1


def by_ids(ranking: Ranking, rows: list[list[Any]], known: list[Any]) -> RankedIds:
    """A ranking of rows by ids; its positions are in `known`."""
    has = set(known)
    ids = []
    for positions, row in zip(ranking.positions, rows, strict=True):
        ids.append([known[position] for position in positions if position >= 0])
        ids[-1] += [id for id in row if id not in has]
    scores = [of_query[: len(row)] for of_query, row in zip(ranking.scores, rows, strict=True)]
    missing = dict.fromkeys(id for row in rows for id in row if id not in has and not is_padding(id))
    return RankedIds(scores, ids, list(missing))
