import math

import numpy as np
import pytest
import torch

from utils.errors import InputError
from utils.retrieval import calibration
from utils.retrieval.calibration import (
    RIDGE,
    calibrate,
    judge,
    logistic_fit,
    reliability,
    sigmoid,
    threshold_at,
)


def scored(seed=0, classes=40, queries=5, candidates=20, slope=1.5, offset=-4.0):
    """Scores of pairs, genuine with the probability sigmoid(slope * score + offset)."""
    rng = np.random.default_rng(seed)
    scores = (3 * rng.normal(size=(classes * queries, candidates))).astype(np.float32)
    matches = rng.random(scores.shape) < sigmoid(slope * scores.astype(float) + offset)
    return scores, matches, np.repeat(np.arange(classes), queries)


def fitted_by_lbfgs(scores, matches):
    scores, matches = torch.from_numpy(scores).double().ravel(), torch.from_numpy(matches).double().ravel()
    parameters = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [parameters], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-15, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        logits = parameters[0] * scores + parameters[1]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, matches)
        loss.backward()
        return loss

    optimizer.step(closure)
    return parameters.tolist()


@pytest.mark.parametrize("shift", [0, 100])
def test_fit_equals_lbfgs(shift):
    scores, matches, labels = scored()
    found = calibrate(scores + np.float32(shift), matches, labels)
    slope, offset = fitted_by_lbfgs(scores, matches)
    assert found.slope == pytest.approx(slope, rel=1e-4)
    assert found.offset + shift * found.slope == pytest.approx(offset, rel=1e-4)
    assert found.slope == pytest.approx(1.5, abs=0.15)
    assert found[2:] == (matches.mean(), found.threshold, 0.01, 4000, 40)
    probabilities = found.probability(np.sort(scores.ravel() + np.float32(shift)))
    assert (np.diff(probabilities) >= 0).all() and 0 <= probabilities[0] < probabilities[-1] <= 1
    assert found.probability(scores + np.float32(shift)).mean() == pytest.approx(matches.mean(), abs=1e-6)


def test_other_proportion_of_genuine_pairs():
    """The offset corrected as the docstring says is the one fitted where genuine pairs are rarer."""
    scores, matches, labels = scored(classes=400, candidates=50)
    found = calibrate(scores, matches, labels)
    kept = ~matches | (np.random.default_rng(1).random(matches.shape) < 0.2)
    _, offset = logistic_fit(scores[kept], matches[kept])
    p, q = matches.mean(), matches[kept].mean()
    assert found.offset + math.log(q / (1 - q)) - math.log(p / (1 - p)) == pytest.approx(offset, abs=0.1)
    assert abs(found.offset - offset) > 1


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.29, 0.5, 0.0001])
def test_threshold_equals_plain_count(rate):
    rng = np.random.default_rng(0)
    scores = rng.normal(size=100).round(1).astype(np.float32)  # with equal ones
    threshold = threshold_at(scores, rate)
    expected = min(score for score in scores if sum(other > score for other in scores) <= round(rate * 100, 6))
    assert threshold == expected


def test_separable_scores_end():
    matches = np.arange(100) >= 90
    slope, offset = logistic_fit(np.arange(100.0), matches)
    assert math.isfinite(slope) and 1 < slope < 1e4 and -offset / slope == pytest.approx(89.5, abs=0.1)
    again = logistic_fit(np.arange(100.0) + 1e6, matches)
    assert again[0] == pytest.approx(slope, rel=1e-3)
    gradient = (sigmoid(slope * np.arange(100.0) + offset) - matches).sum() + RIDGE * (offset + slope * 49.5)
    assert abs(gradient) < 1e-8


def test_constant_scores():
    scores, matches, labels = scored()
    found = calibrate(np.full_like(scores, 2), matches, labels)
    assert found.slope == pytest.approx(0, abs=1e-9) and found.threshold == 2
    assert found.probability(2.0) == pytest.approx(matches.mean())


def test_left_out(capsys):
    scores, matches, labels = scored()
    few = scored(classes=4)
    for arguments, reason in (
        (few, "the queries have fewer than 5 classes"),
        ((scores, matches & False, labels), "no candidate is of its query's class"),
        ((scores, matches | True, labels), "all candidates are of their query's class"),
    ):
        assert calibrate(*arguments) is None
        assert capsys.readouterr().out == f"scores are not calibrated: {reason}\n"
    fitted = calibrate(scores, matches, labels)
    for genuine, reason in (
        (matches & False, "no candidate is of its query's class"),
        (matches | True, "all candidates are of their query's class"),
    ):
        assert judge(fitted, scores, genuine, labels) is None
        assert capsys.readouterr().out == f"the threshold for a match is not judged: {reason}\n"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_refuses_what_is_not_finite(value):
    scores, matches, labels = scored()
    scores[3, 4] = value
    with pytest.raises(InputError, match="not finite"):
        calibrate(scores, matches, labels)


def test_judge_equals_plain_loop():
    scores, matches, labels = scored(classes=23)
    part = labels < 12
    others = [(s, y) for q in np.flatnonzero(~part) for s, y in zip(scores[q], matches[q], strict=True)]
    fitted = logistic_fit(*map(np.array, zip(*others, strict=True)))
    threshold = threshold_at(np.array([s for s, y in others if not y]), 0.05)
    judged = calibrate(scores[~part], matches[~part], labels[~part], 0.05)
    scores, matches, labels = scores[part], matches[part], labels[part]
    found = judge(judged, scores, matches, labels)
    wrong, missed, predicted = 0, 0, np.empty(scores.shape)
    for q in range(len(scores)):
        wrong += sum(s > threshold and not y for s, y in zip(scores[q], matches[q], strict=True))
        missed += sum(s <= threshold and y for s, y in zip(scores[q], matches[q], strict=True))
        predicted[q] = 1 / (1 + np.exp(-(fitted[0] * scores[q] + fitted[1])))
    assert found.false_match_rate == pytest.approx(wrong / (~matches).sum())
    assert found.false_non_match_rate == pytest.approx(missed / matches.sum())
    assert found.false_match_rate == pytest.approx(0.05, abs=0.02)
    assert found.interval[0] < found.false_non_match_rate < found.interval[1] < found.interval[0] + 0.2
    for row in found.reliability:
        low = math.floor(row.predicted * 10) / 10
        inside = (predicted >= low) & (predicted < low + 0.1)
        assert row.num_pairs == inside.sum() and row.observed == pytest.approx(matches[inside].mean())
        assert row.observed == pytest.approx(row.predicted, abs=4 * 0.5 / row.num_pairs**0.5)
    assert sum(row.num_pairs for row in found.reliability) == matches.size


def test_reliability_of_certain_pairs():
    rows = reliability(np.array([0.0, 0.05, 1.0, 1.0]), np.array([False, True, True, True]))
    assert rows == [(0.025, 0.5, 2), (1.0, 1.0, 2)]
    assert calibration.BINS == 10
