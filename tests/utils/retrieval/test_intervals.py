import math

import numpy as np
import pytest

from tools.coverage import coverage
from utils.retrieval import intervals
from utils.retrieval.intervals import mean_interval, ratio_interval, t_quantile
from utils.retrieval.measures import changes_of


def test_changes_equal_plain_bootstrap_over_classes():
    rng = np.random.default_rng(1)
    before, after = rng.integers(0, 6, 400).astype(float), rng.integers(0, 5, 400).astype(float)
    before[:10] = np.inf
    classes = np.sort(rng.integers(0, 80, 400))
    before[classes < 20], after[classes < 20] = 5, 0
    of_class = [np.flatnonzero(classes == c) for c in np.unique(classes)]
    for k, found in zip((1, 3), changes_of(before, after, classes, (1, 3)), strict=True):
        change = (after < k).astype(int) - (before < k)
        assert (found.k, found.gained, found.lost) == (k, (change > 0).sum(), (change < 0).sum())
        means = []
        for _ in range(4000):
            drawn = np.concatenate([of_class[c] for c in rng.integers(0, len(of_class), len(of_class))])
            means.append(100 * change[drawn].mean())
        points, low, high = found.interval
        assert points == pytest.approx(100 * change.mean(), abs=0.005)
        # 1.99 * sqrt(80 / 79) standard errors in place of 1.96: 2.2 % wider
        assert [low, high] == pytest.approx(np.percentile(means, (2.17, 97.83)).tolist(), abs=1.0)
        by_query = mean_interval(change, np.arange(400))
        assert high - low > 1.2 * 100 * (by_query[1] - by_query[0])
        assert str(found).startswith(
            f"R@{k}: {found.gained} queries gained, {found.lost} lost: {points:+.2f} points (95"
        )


def test_no_change_and_a_single_class():
    ranks, change = np.array([0.0, 3.0]), "R@1: 0 queries gained, 0 lost: +0.00 points (95 % interval"
    assert str(changes_of(ranks, ranks, np.array([5, 2]), [1])[0]) == f"{change} +0.00 to +0.00)"
    assert str(changes_of(ranks, ranks, np.array([2, 2]), [1])[0]) == f"{change} -100.00 to +100.00)"
    assert ratio_interval(np.array([1.0, 0.0]), np.array([2, 0])) == (-math.inf, math.inf)


def test_blocks_draw_the_same(monkeypatch):
    rng = np.random.default_rng(0)
    values, classes = rng.normal(size=300), rng.integers(0, 50, 300)
    found = mean_interval(values, classes)
    monkeypatch.setattr(intervals, "BLOCK", 700)
    assert mean_interval(values, classes) == pytest.approx(found, abs=1e-12)


@pytest.mark.parametrize(("degrees", "expected"), [(4, 2.7764), (9, 2.2622), (39, 2.0227), (99, 1.9842)])
def test_t_quantile(degrees, expected):
    assert t_quantile(degrees) == pytest.approx(expected, rel=0.003)


@pytest.mark.parametrize("correlation", [0.0, 0.5])
def test_coverage(correlation, monkeypatch):
    """Of 400 intervals of 95 %, 366 to 392 hold the truth in all but one of a hundred seeds."""
    monkeypatch.setattr(intervals, "RESAMPLES", 1000)
    assert 0.915 <= coverage(100, correlation, 400) <= 0.98
    assert (coverage(100, correlation, 400, clustered=False) < 0.9) == (correlation > 0)
