"""From a fused score to the probability that two photos show one product, and a threshold for "no match".

Pairs are those of a query and a candidate. A pair is genuine if both are of one class, else an impostor, as in ISO/IEC
19795-1: the false match rate (FMR) is the proportion of impostor pairs that match, the false non-match rate (FNMR) that
of genuine pairs that do not. Both are of candidates: impostors that the global ranking has not found do not count.
"""

import math
from typing import NamedTuple

import numpy as np

from utils.errors import InputError
from utils.retrieval.crossfit import FOLDS
from utils.retrieval.intervals import ratio_interval

FALSE_MATCH_RATE = 0.01
RIDGE = 1e-6  # half of it times the squared parameters, of standardised scores, is added to the sum of losses
MAX_STEPS, TOLERANCE = 100, 1e-10  # of Newton's method; separable scores take some thirty steps
BINS = 10  # of the reliability diagram


class Calibration(NamedTuple):
    """`sigmoid(slope * score + offset)` is the probability of a genuine pair, if a pair is one as often as here.

    Where the proportion of genuine pairs is q in place of `true_pairs` p, add log(q / (1 - q)) - log(p / (1 - p)) to
    `offset`. A pair matches if its score is above `threshold`.
    """

    slope: float
    offset: float
    true_pairs: float  # the proportion of genuine pairs
    threshold: float
    false_match_rate: float  # at most that of the pairs fitted on
    num_pairs: int
    num_classes: int

    def probability(self, scores: np.ndarray) -> np.ndarray:
        """Probabilities, float64, of scores of any shape."""
        return sigmoid(self.slope * np.asarray(scores, np.float64) + self.offset)


class Bin(NamedTuple):
    """Pairs of which the probability, predicted without their class, lies between two multiples of 1 / BINS."""

    predicted: float  # the mean
    observed: float  # the proportion of genuine pairs
    num_pairs: int


class HeldOut(NamedTuple):
    """What a calibration comes to on classes that it was not fitted on."""

    false_match_rate: float
    false_non_match_rate: float
    interval: tuple[float, float]  # 95 %, of the false non-match rate, by classes
    reliability: list[Bin]  # of the reliability diagram, without empty ones


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)), without overflow."""
    return np.exp(-np.logaddexp(0, -x))


def calibrate(
    scores: np.ndarray, matches: np.ndarray, labels: np.ndarray, false_match_rate: float = FALSE_MATCH_RATE
) -> Calibration | None:
    """Fit to the scores (n, m) of the candidates of queries of the classes `labels` (n,), `matches` (n, m) the genuine.

    None, and the reason is printed, with fewer than five classes, without a genuine and without an impostor pair.
    InputError if a score is not finite.
    """
    if not np.isfinite(scores).all():
        raise InputError("scores that are not finite cannot be calibrated")
    if not 0 < false_match_rate < 1:
        raise InputError(f"false_match_rate={false_match_rate} must lie between 0 and 1")
    num_classes = len(np.unique(labels))
    reason = f"the queries have fewer than {FOLDS} classes" if num_classes < FOLDS else _lacking(matches)
    if reason:
        print(f"scores are not calibrated: {reason}")
        return None
    slope, offset = logistic_fit(scores.ravel(), matches.ravel())
    threshold = threshold_at(scores[~matches], false_match_rate)
    return Calibration(slope, offset, float(matches.mean()), threshold, false_match_rate, matches.size, num_classes)


def _lacking(matches: np.ndarray) -> str | None:
    if not matches.any():
        return "no candidate is of its query's class"
    return "all candidates are of their query's class" if matches.all() else None


def logistic_fit(scores: np.ndarray, matches: np.ndarray) -> tuple[float, float]:
    """Slope and offset of greatest likelihood of scores (N,) and bools (N,), by Newton's method in float64.

    Both are finite for separable scores, too: `RIDGE` keeps them so.
    """
    mean, deviation = float(scores.mean(dtype=np.float64)), float(scores.std(dtype=np.float64)) or 1.0
    x, y = (scores.astype(np.float64) - mean) / deviation, matches.astype(np.float64)

    def loss(parameters: np.ndarray) -> float:
        z = parameters[0] * x + parameters[1]
        return float(np.logaddexp(0, z).sum() - y @ z + RIDGE / 2 * parameters @ parameters)

    parameters = np.array([0.0, math.log(y.sum() / (len(y) - y.sum()))])
    before = loss(parameters)
    for _ in range(MAX_STEPS):
        predicted = sigmoid(parameters[0] * x + parameters[1])
        residuals, weights = predicted - y, predicted * (1 - predicted)
        gradient = np.array([residuals @ x, residuals.sum()]) + RIDGE * parameters
        weighted = weights * x
        hessian = np.array([[weighted @ x, weighted.sum()], [weighted.sum(), weights.sum()]]) + RIDGE * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        while (after := loss(parameters - step)) > before and np.abs(step).max() > TOLERANCE:
            step /= 2
        parameters, before = parameters - step, after
        if np.abs(step).max() <= TOLERANCE * max(np.abs(parameters).max(), 1):
            break
    slope = float(parameters[0]) / deviation
    return slope, float(parameters[1]) - slope * mean


def threshold_at(impostor_scores: np.ndarray, false_match_rate: float) -> float:
    """The least score above which at most the proportion `false_match_rate` of impostor scores (N,) lies."""
    allowed = int(false_match_rate * len(impostor_scores) + 1e-9)
    place = len(impostor_scores) - 1 - allowed
    return float(np.partition(impostor_scores, place)[place])


def judge(calibration: Calibration, scores: np.ndarray, matches: np.ndarray, labels: np.ndarray) -> HeldOut | None:
    """Judge a calibration on other classes than those it was fitted on, with the arguments of `calibrate`.

    None, and the reason is printed, without a genuine and without an impostor pair.
    """
    if reason := _lacking(matches):
        print(f"the threshold for a match is not judged: {reason}")
        return None
    predicted, is_match = calibration.probability(scores), scores > calibration.threshold
    missed, genuine = (matches & ~is_match).sum(axis=1), matches.sum(axis=1)
    by_class = [np.bincount(labels, weights=values) for values in (missed, genuine)]
    low, high = np.clip(ratio_interval(*by_class), 0, 1).tolist()
    return HeldOut(
        float(is_match[~matches].mean()),
        float(missed.sum() / genuine.sum()),
        (low, high),
        reliability(predicted.ravel(), matches.ravel()),
    )


def reliability(predicted: np.ndarray, matches: np.ndarray) -> list[Bin]:
    """The reliability diagram of probabilities (N,) of the bools (N,)."""
    numbers = np.minimum((predicted * BINS).astype(np.int64), BINS - 1)
    counts, *sums = (np.bincount(numbers, weights=weights, minlength=BINS) for weights in (None, predicted, matches))
    rows = zip(*sums, counts.tolist(), strict=True)
    return [Bin(float(total) / count, float(genuine) / count, count) for total, genuine, count in rows if count]
