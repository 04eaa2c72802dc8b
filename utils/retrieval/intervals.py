"""95 % intervals that hold where queries of one class share their fate: the bootstrap draws classes."""

import math
from statistics import NormalDist

import numpy as np

RESAMPLES = 10_000  # of the bootstrap: another seed moves the ends of an interval by a hundredth of its width
BLOCK = 2_000_000  # counts drawn at a time: 16 MB


def mean_interval(values: np.ndarray, classes: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of the mean of `values` (n,), one per query of the `classes` (n,), numbers from 0."""
    return ratio_interval(np.bincount(classes, weights=values), np.bincount(classes))


def ratio_interval(sums: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of `sums.sum() / counts.sum()`, over classes (C,); those with a count of 0 are left out.

    Percentiles of the ratio over classes drawn with replacement, expanded for few classes as by Hesterberg, *What
    Teachers Should Know About the Bootstrap* (2015), section 4.1.2: to the normal level of t * sqrt(C / (C - 1)), with
    t the quantile of C - 1 degrees of freedom. Infinite with fewer than two classes. Where queries of a class correlate
    by 0.5 it holds in 94 % from 100 classes on, in 92 % with 40 and in 90 % with 12 (`tools/coverage.py`).

    Classes of equal sum, to a hundredth, and count are drawn together: of the 11,316 of SOP, changes of a recall have
    some hundred kinds, changes of average precision some thousand.
    """
    pairs = np.stack([np.round(sums, 2), counts], axis=1)[counts > 0]
    if len(pairs) < 2:
        return -math.inf, math.inf
    kinds, sizes = np.unique(pairs, axis=0, return_counts=True)
    rng, block = np.random.default_rng(0), max(BLOCK // len(kinds), 1)
    drawn = []
    for start in range(0, RESAMPLES, block):
        rows = min(block, RESAMPLES - start)
        resampled = rng.multinomial(len(pairs), sizes / len(pairs), size=rows).astype(np.float64) @ kinds
        drawn.append(resampled[:, 0] / resampled[:, 1])
    tail = NormalDist().cdf(-t_quantile(len(pairs) - 1) * math.sqrt(len(pairs) / (len(pairs) - 1)))
    low, high = np.quantile(np.concatenate(drawn), (tail, 1 - tail)).tolist()
    return low, high


def t_quantile(degrees: int) -> float:
    """The 97.5 % quantile of Student's t, by its expansion about the normal quantile (Abramowitz and Stegun, 26.7.5).

    It is 3 % too small for two degrees of freedom, and 0.3 % for four.
    """
    z = NormalDist().inv_cdf(0.975)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / degrees**power for power, term in enumerate(terms, 1))
