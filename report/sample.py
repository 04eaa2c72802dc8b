"""The sample of queries on a page, drawn so that it has each outcome of reranking."""

from itertools import zip_longest

import numpy as np

SEED = 0
OUTCOMES = ("gained", "lost", "still wrong", "still right")


def outcomes(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Positions in OUTCOMES (n,) of queries, by the ranks (n,), from 0, of their first matches."""
    return np.where(before > 0, np.where(after > 0, 2, 0), np.where(after > 0, 1, 3))


def draw(outcome: np.ndarray) -> list[int]:
    """All queries in random order by a fixed seed, one of each outcome (n,) in turn while there are any left."""
    order = np.random.default_rng(SEED).permutation(len(outcome))
    by_outcome = [order[outcome[order] == i].tolist() for i in range(len(OUTCOMES))]
    return [query for queries in zip_longest(*by_outcome) for query in queries if query is not None]
