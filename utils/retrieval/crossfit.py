"""Cross-validated weights of summed scores: tuned on four folds of classes, applied to the fifth."""

import math
from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import numpy as np

from utils.errors import InputError
from utils.retrieval.measures import relevant_of
from utils.retrieval.outcomes import Outcomes, outcomes
from utils.retrieval.ranking import Candidates, Ranking, Weights, ranking_by, select_queries
from utils.retrieval.results import Labels

FOLDS, FOLD_SEED = 5, 0
COSINE_WEIGHTS = (0, 1, 2, 5, 10, 20, 50, 100)  # w beside logits, which lie within some ten of 0
CHAMFER_WEIGHTS = (0, 5, 10, 20, 50, 100)  # v beside logits
COSINE_TO_CHAMFER = (0, 0.25, 0.5, 1, 2, 4)  # w beside the Chamfer similarity, without logits
NUM_CANDIDATES = (10, 25, 50, 100)
# middle ones of `grid`, with logits and without, where none can be chosen
FIXED_WEIGHTS = {True: Weights(1, 20, 10, 100), False: Weights(0, 0.5, 1, 100)}
GLOBAL_ERRORS = 2  # standard errors: random scores lost 0.27 +- 0.07 points of R@1 with 1, 0.07 +- 0.03 with 2


def grid(num_scored: int, with_logits: bool) -> list[Weights]:
    """The weights to choose from, the global ranking first."""
    counts = sorted({count for count in NUM_CANDIDATES if count < num_scored} | {num_scored})
    choices = [Weights(float(with_logits), math.inf, 0, num_scored)]
    if with_logits:
        weights = product(reversed(COSINE_WEIGHTS), CHAMFER_WEIGHTS)
        return choices + [Weights(1, w, v, count) for w, v in weights for count in counts]
    return choices + [Weights(0, w, 1, count) for w in reversed(COSINE_TO_CHAMFER) for count in counts]


def describe_grid(num_scored: int, with_logits: bool) -> str:
    """The grid in one line of text."""
    formulas = f"chamfer + w * cosine with w in {COSINE_TO_CHAMFER}"
    if with_logits:
        formulas += f"; logit + w * cosine + v * chamfer with w in {COSINE_WEIGHTS}, v in {CHAMFER_WEIGHTS}"
    counts = sorted({choice.num_candidates for choice in grid(num_scored, False)})
    chosen = "weights are chosen by R@1, then mAP@R"
    return f"{chosen}, among the global ranking and, of the first {counts} candidates, {formulas}"


def choose(results: Outcomes, with_global: bool = True) -> int:
    """The choice of best mAP@R that loses no R@1, and of those as good the one that changes fewest top-1 results.

    `results` are sums by class; the first choice is the global ranking. "No worse" is as `near_best` has it: so weights
    differ from the global ranking only if that pays, or `with_global` is False: then it is no choice.
    """
    near = near_best(results.hits, np.arange(len(results.hits)) >= 1 - with_global)
    near = near_best(results.precisions, near)
    return int(np.where(near, results.unchanged.sum(axis=1), -1).argmax())


def near_best(sums: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Which of the choices that `among` (choices,) selects have a sum within one standard error of the best of them.

    The first choice, the global ranking, may lie `GLOBAL_ERRORS` below it. The standard error is that of the paired
    difference to the best, clustered by class: queries of one class are not independent. `sums` (choices, C) are those
    of each class.

    With x lost in each of c classes, t in all, t is compared with e roots of c / (c - 1) * sum((x - t / c)**2). Squared
    and multiplied out that is t**2 * (c - 1 + e**2) <= e**2 * c * sum(x**2): whole numbers for hits, so that rounding
    decides nothing.
    """
    lost = sums[np.where(among, sums.sum(axis=1), -1).argmax()] - sums
    errors, classes = np.ones(len(sums)), sums.shape[1]
    errors[0] = GLOBAL_ERRORS
    squared = np.square(lost.sum(axis=1)) * (classes - 1 + errors**2)
    return among & (squared <= errors**2 * classes * np.square(lost).sum(axis=1))


class CrossFit(NamedTuple):
    """A ranking by cross-validated weights: no query was used to choose its own weights, nor was its class."""

    ranking: Ranking
    by_fold: list[Weights]
    overall: Weights  # chosen on all classes: the setting for new photos


def folds(labels: np.ndarray) -> Iterator[np.ndarray]:
    """Masks (n,) of the queries of each fold; whole classes are dealt to the folds, with a fixed seed."""
    classes = np.unique(labels)
    fold_of = np.empty(labels.max() + 1, np.int64)
    fold_of[np.random.default_rng(FOLD_SEED).permutation(classes)] = np.arange(len(classes)) % FOLDS
    for fold in range(FOLDS):
        yield fold_of[labels] == fold


def crossfit(
    candidates: Candidates,
    labels: np.ndarray,
    matches: np.ndarray,
    relevant: np.ndarray,
    with_logits: bool,
    with_global: bool = True,
) -> CrossFit:
    """Choose weights of `grid` for each fold by `choose` on the other folds, and rank the fold by them.

    `labels` (n,) are the queries' classes, numbers from 0; `matches` and `relevant` are those of `outcomes`. InputError
    with fewer than five classes, and if no query of a fold has a match.
    """
    _, first, classes = np.unique(labels, return_index=True, return_inverse=True)
    if len(first) < FOLDS:
        raise InputError(f"weights are chosen over {FOLDS} folds of classes, but the queries have fewer classes")
    masks = list(folds(labels))
    if not all(matches[mask].any() for mask in masks):
        raise InputError("in one of the folds of classes no query has a match among its candidates")
    choices = grid(candidates.cosines.shape[1], with_logits)
    results = outcomes(candidates, matches, relevant, choices).by_class(classes)
    ranking = Ranking(np.empty(candidates.neighbours.shape, np.float32), candidates.neighbours.copy())
    by_fold = []
    for mask in masks:
        chosen = choices[choose(Outcomes(*(sums[:, ~mask[first]] for sums in results)), with_global)]
        by_fold.append(chosen)
        of_fold = ranking_by(select_queries(candidates, mask), chosen)
        ranking.scores[mask], ranking.positions[mask] = of_fold
    return CrossFit(ranking, by_fold, choices[choose(results, with_global)])


def fit_weights(candidates: Candidates, labels: Labels, with_logits: bool, with_global: bool = True) -> CrossFit:
    """`crossfit` with the matches that follow from `labels`."""
    matches = matches_of(candidates, labels)
    return crossfit(candidates, labels.queries, matches, relevant_of(*labels), with_logits, with_global)


def matches_of(candidates: Candidates, labels: Labels) -> np.ndarray:
    """Whether each rescored candidate (n, m) is of its query's class."""
    scored = candidates.neighbours[:, : candidates.cosines.shape[1]]
    return labels.gallery[scored] == labels.queries[:, None]
