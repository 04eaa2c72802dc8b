"""What each choice of weights makes of each query: its first result, and average precision."""

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np

from utils.retrieval.ranking import Candidates, Weights, fused_scores

BLOCK = 2048  # queries processed at a time: scores of 100 candidates, 0.8 MB, stay in a core's cache


class Outcomes(NamedTuple):
    """The result of each choice of weights for each query (choices, n), or summed by class (choices, C)."""

    hits: np.ndarray  # bool: the first candidate is of the query's class
    unchanged: np.ndarray  # bool: the first candidate is the global ranking's
    precisions: np.ndarray  # float32: average precision at R, of the candidates: later matches do not depend on it

    def by_class(self, classes: np.ndarray) -> "Outcomes":
        """Sums over the queries of each class, float64; `classes` (n,) are numbers from 0 without a gap."""
        return Outcomes(*(np.stack([np.bincount(classes, weights=row) for row in rows]) for rows in self))


def outcomes(candidates: Candidates, matches: np.ndarray, relevant: np.ndarray, choices: Sequence[Weights]) -> Outcomes:
    """The outcomes of `choices`; `matches` (n, m) tells which candidates are of their query's class.

    `relevant` (n,) is R: the number of gallery images of the query's class, itself left out.
    """
    shape = len(choices), len(matches)
    results = Outcomes(np.empty(shape, bool), np.empty(shape, bool), np.empty(shape, np.float32))
    order = np.argsort(-matches.sum(axis=1), kind="stable")
    groups = [list(group) for _, group in groupby(enumerate(choices), key=lambda item: item[1][:3])]
    for start in range(0, len(order), BLOCK):
        rows = order[start : start + BLOCK]
        block, found = _columnwise(candidates, rows), _Matches.of(matches[rows], relevant[rows])
        for group in groups:  # scores depend on the weights only
            scores = fused_scores(block, group[0][1]).T
            sizes = [weights.num_candidates for _, weights in group]
            for (i, _), size, ranks in zip(group, sizes, found.ranks(scores, sizes), strict=True):
                results.hits[i, rows], results.precisions[i, rows] = found.precisions(ranks)
                results.unchanged[i, rows] = scores[0] == scores[:size].max(axis=0)
    return results


def _columnwise(candidates: Candidates, rows: np.ndarray) -> Candidates:
    """The candidates of the queries `rows`, in memory place by place; NaN ranks first, as infinity does."""

    def ordered(scores: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(np.where(np.isnan(scores[rows]), np.inf, scores[rows]).T).T

    logits = None if candidates.logits is None else ordered(candidates.logits)
    return Candidates(candidates.neighbours[rows], ordered(candidates.cosines), ordered(candidates.chamfer), logits)


class _Matches(NamedTuple):
    """The matches of a block of queries, which have ever fewer: the first match of each query, then the second, ..."""

    columns: list[np.ndarray]  # of the first, second, ... match; k-th of them belongs to the k-th query
    discounts: np.ndarray  # float32 (depth, queries): 1 / (R * place) of the first R places, else 0

    @classmethod
    def of(cls, matches: np.ndarray, relevant: np.ndarray) -> "_Matches":
        queries, columns = np.nonzero(matches)
        nth = np.arange(len(queries)) - np.searchsorted(queries, queries)
        places = np.arange(1, max(min(matches.shape[1], int(relevant.max())), 1) + 1, dtype=np.float32)[:, None]
        discounts = (places <= relevant) / (places * np.maximum(relevant, 1))
        most = int(matches.sum(axis=1).max(initial=0))
        return cls([columns[nth == n].astype(np.int32) for n in range(most)], discounts.astype(np.float32))

    def ranks(self, scores: np.ndarray, sizes: Sequence[int]) -> list[list[np.ndarray]]:
        """The rank, from 0, of each match when the first `sizes` (rising) of the candidates are ranked by `scores`.

        `scores` are (m, queries). Of equal scores the first comes first; what is not ranked keeps its place.
        """
        ranks: list[list[np.ndarray]] = [[] for _ in sizes]
        places = np.arange(len(scores), dtype=np.int32)[:, None]
        count_type = np.uint8 if len(scores) < 256 else np.uint32
        for columns in self.columns:
            others = scores[:, : len(columns)]
            own = others[columns, np.arange(len(columns))]
            above = others > own
            above |= (others == own) & (places < columns)
            start, counted = 0, np.zeros(len(columns), count_type)
            for size, by_size in zip(sizes, ranks, strict=True):
                counted = counted + above[start:size].view(np.uint8).sum(axis=0, dtype=count_type)
                by_size.append(np.where(columns < size, counted, columns))
                start = size
        return ranks

    def precisions(self, ranks: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Whether each query's first place matches, and its average precision at R."""
        depth, queries = self.discounts.shape
        found = np.zeros((depth, queries), np.float32)
        for of_match in ranks:
            inside = np.flatnonzero(of_match < depth)
            found[of_match[inside], inside] = 1
        seen, precision = np.zeros((2, queries), np.float32)
        for matches, discount in zip(found, self.discounts, strict=True):  # the steps of a slow cumsum
            seen += matches
            precision += seen * matches * discount
        return found[0] > 0, precision
