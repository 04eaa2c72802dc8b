"""Measures of a ranking, and changes between two rankings with confidence intervals."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from utils.retrieval.intervals import mean_interval

MAP_AT_R = "mAP@R"
BLOCK = 4096  # queries processed at a time: of 1,000 neighbours each, 33 MB


def recalls_of(
    positions: np.ndarray, query_labels: Tensor, gallery_labels: Tensor, ks: Sequence[int]
) -> dict[int, float]:
    """Recall@K, in % rounded to two decimals, of gallery positions (n, columns): the proportion of queries with an
    image of their class in the first K columns."""
    ranks = first_match_ranks(positions, query_labels.cpu().numpy(), gallery_labels.cpu().numpy())
    return {int(k): round(100 * float(np.mean(ranks < k)), 2) for k in ks}


def first_match_ranks(positions: np.ndarray, query_labels: np.ndarray, gallery_labels: np.ndarray) -> np.ndarray:
    """The first column, from 0, of each row that holds an image of the query's class; infinite without one."""
    ranks = np.empty(len(positions))
    for start in range(0, len(positions), BLOCK):
        rows = slice(start, start + BLOCK)
        matches = gallery_labels[positions[rows]] == query_labels[rows, None]
        ranks[rows] = np.where(matches.any(axis=1), matches.argmax(axis=1), np.inf)
    return ranks


def relevant_of(query_labels: np.ndarray, gallery_labels: np.ndarray, is_self_search: bool) -> np.ndarray:
    """R of each query (n,): the number of gallery images of its class, itself left out in a self-search."""
    of_class = np.bincount(gallery_labels, minlength=int(query_labels.max(initial=0)) + 1)
    return of_class[query_labels] - int(is_self_search)


def precisions_of(
    positions: np.ndarray, query_labels: np.ndarray, gallery_labels: np.ndarray, relevant: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Average precision at R and R-precision of each query (n,), 0 where R, its `relevant`, is 0."""
    average_precision, r_precision = np.zeros(len(positions)), np.zeros(len(positions))
    places = np.arange(1, positions.shape[1] + 1)
    for start in range(0, len(positions), BLOCK // 4):
        rows = slice(start, start + BLOCK // 4)
        matches = gallery_labels[positions[rows]] == query_labels[rows, None]
        counted = matches & (places <= relevant[rows, None])
        divisor = np.maximum(relevant[rows], 1)
        average_precision[rows] = (np.cumsum(matches, axis=1) / places * counted).sum(axis=1) / divisor
        r_precision[rows] = counted.sum(axis=1) / divisor
    return average_precision, r_precision


class Measures(NamedTuple):
    """Measures of a ranking in %, rounded to two decimals, and the numbers of queries that they do not cover."""

    values: dict[str, float]  # R@K, mAP@R, R-precision and MRR
    ranks: np.ndarray  # of the first match of each query, from 0, infinite without one
    without_others: int  # queries with no other image of their class in the gallery: left out of the last three
    cut_short: int  # queries with more images of their class than the ranking has columns


def measures_of(
    positions: np.ndarray, query_labels: np.ndarray, gallery_labels: np.ndarray, ks: Sequence[int], is_self_search: bool
) -> Measures:
    """R@K, mAP@R, R-precision and MRR of gallery positions (n, columns).

    Musgrave, Belongie and Lim, *A Metric Learning Reality Check* (2020), section 3.1: R is the number of gallery images
    of the query's class, itself left out in a self-search; R-precision the proportion of them in the first R columns;
    mAP@R the mean over i = 1 ... R of the precision at i where column i matches, else 0. MRR is the mean of 1 / rank of
    the first match, 0 without one. Missing columns count as misses.
    """
    ranks = first_match_ranks(positions, query_labels, gallery_labels)
    values = {f"R@{k}": float(np.mean(ranks < k)) for k in ks}
    relevant = relevant_of(query_labels, gallery_labels, is_self_search)
    average_precision, r_precision = precisions_of(positions, query_labels, gallery_labels, relevant)
    has_others = relevant > 0
    for name, scores in ((MAP_AT_R, average_precision), ("R-precision", r_precision), ("MRR", 1 / (ranks + 1))):
        values[name] = float(np.mean(scores[has_others])) if has_others.any() else 0.0
    in_percent = {name: round(100 * value, 2) for name, value in values.items()}
    return Measures(in_percent, ranks, int((~has_others).sum()), int((relevant > positions.shape[1]).sum()))


class Change(NamedTuple):
    """Queries that a ranking gained and lost at K, and the change of R@K in points with its 95 % interval."""

    k: int
    gained: int
    lost: int
    interval: list[float]  # points, its lower and its upper end

    def __str__(self) -> str:
        points, low, high = self.interval
        change = f"{points:+.2f} points (95 % interval {low:+.2f} to {high:+.2f})"
        return f"R@{self.k}: {self.gained} queries gained, {self.lost} lost: {change}"


def changes_of(before: np.ndarray, after: np.ndarray, classes: np.ndarray, ks: Sequence[int]) -> list[Change]:
    """Changes at each K from ranks `before` to ranks `after` (n,), from 0, of each query's first match.

    The interval is that of a paired bootstrap over the queries' `classes` (n,), numbers from 0. It takes weights as
    fixed, and with a single class it is all that is possible.
    """
    changes = []
    for k in ks:
        change = (after < k).astype(np.int64) - (before < k)
        ends = np.clip(100 * np.array(mean_interval(change, classes)), -100, 100)
        interval = [round(points, 2) for points in (100 * float(change.mean()), *ends.tolist())]
        changes.append(Change(k, int((change > 0).sum()), int((change < 0).sum()), interval))
    return changes
