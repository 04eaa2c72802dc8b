"""The two evaluations, and what they leave: neighbour files, what was found for each query, what reranking changed.

`dtype` is the number format of matrix products and convolutions.
"""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from utils.caches import save_neighbours
from utils.embedding import GLOBAL, LOCAL, embed
from utils.files import atomic_write
from utils.knn import EXACT
from utils.metrics import first_match_ranks, recall_at_ks, recall_at_ks_rerank

RESAMPLES = 10_000  # of queries: another seed moves an interval's ends by a hundredth of its width


def evaluate_global(
    model,
    query_loader,
    gallery_loader,
    recall_ks: Sequence[int],
    dtype=torch.float32,
    knn_index: str = EXACT,
    features: str | None = None,
):
    """`recall_at_ks` of the images' normalised global descriptors; `gallery_loader` None: among themselves.

    With a folder `features`, descriptors are kept there for later evaluations (`utils.features`).
    """
    queries, gallery = _embed_sets(model, query_loader, gallery_loader, GLOBAL, dtype, features)
    return recall_at_ks(*queries, recall_ks, *gallery, cosine=True, knn_index=knn_index)


def evaluate_rerank(
    model,
    cache_nn_inds: Tensor,
    query_loader,
    gallery_loader,
    recall_ks: Sequence[int],
    dtype=torch.float32,
    features: str | None = None,
):
    """`recall_at_ks_rerank` of the images' local maps; `gallery_loader` and `features` as for `evaluate_global`."""
    queries, gallery = _embed_sets(model, query_loader, gallery_loader, LOCAL, dtype, features)
    return recall_at_ks_rerank(*queries, recall_ks, model, cache_nn_inds, *gallery)


def _embed_sets(
    model, query_loader, gallery_loader, output: int, dtype: torch.dtype, features: str | None
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor | None, Tensor | None]]:
    """Features and labels of the queries, and of the gallery, None if there is none of its own."""
    queries = embed(model, query_loader, output, "query", dtype, features)
    if gallery_loader is None:
        return queries, (None, None)
    return queries, embed(model, gallery_loader, output, "gallery", dtype, features)


def save_evaluation(
    folder: Path | str,
    query_loader,
    gallery_loader,
    values: np.ndarray,
    positions: np.ndarray,
    ks: Sequence[int],
    neighbours: np.ndarray | None = None,
) -> None:
    """Write an evaluation's neighbour files and `per_query.csv`; with the `neighbours` before reranking, print changes.

    The loaders' image sets have `labels`, `paths` and `classes`; `gallery_loader` None: the queries themselves.
    """
    save_neighbours(folder, values, positions)
    queries = query_loader.dataset
    labels = queries.labels, (gallery_loader or query_loader).dataset.labels
    ranks = [first_match_ranks(found, *labels) for found in (neighbours, positions) if found is not None]
    write_per_query(Path(folder) / "per_query.csv", queries.paths, queries.classes, *ranks)
    if neighbours is not None:
        print(*describe_changes(ranks[0], ranks[1], ks), sep="\n")


def write_per_query(
    path: Path, paths: Sequence[str], classes: Sequence[int], before: np.ndarray, after: np.ndarray | None = None
) -> None:
    """Write a table with a row per query: position, path, class, rank of first match before and after reranking.

    Ranks are given from 0, infinite where no neighbour matches; they are written from 1, and left empty.
    """
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("query", "path", "class", "rank_before", "rank_after"))
    no_ranks = np.full(len(before), np.inf)
    for query, row in enumerate(zip(paths, classes, before, no_ranks if after is None else after, strict=True)):
        table.writerow((query, *row[:2], *("" if np.isinf(rank) else int(rank) + 1 for rank in row[2:])))
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())


def describe_changes(before: np.ndarray, after: np.ndarray, ks: Sequence[int]) -> list[str]:
    """A line per K: how many queries reranking gained and lost, and the change of R@K in points with its 95 % interval.

    `before` and `after` are the ranks, from 0, of each query's first match. The interval is a paired bootstrap's:
    queries are drawn with replacement, and a query counts with its own change.
    """
    lines, rng = [], np.random.default_rng(0)
    for k in ks:
        gained = int(((before >= k) & (after < k)).sum())
        lost = int(((before < k) & (after >= k)).sum())
        n = len(before)
        drawn = rng.multinomial(n, [gained / n, lost / n, (n - gained - lost) / n], size=RESAMPLES)
        low, high = np.percentile(100 * (drawn[:, 0] - drawn[:, 1]) / n, (2.5, 97.5))
        change = f"{100 * (gained - lost) / n:+.2f} points (95 % interval {low:+.2f} to {high:+.2f})"
        lines.append(f"R@{k}: {gained} queries gained, {lost} lost: {change}")
    return lines
