"""Rankings of candidates by several scores, and the choice of their weights.

A candidate's fused score is `logit + w * cosine + v * chamfer`: the matcher's logit, the cosine of the two global
descriptors, the Chamfer similarity of the two local maps. AMES and LoCoRe fuse
`l * cosine + (1 - l) * sigmoid(g * logit)` instead.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import groupby, product
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from utils.errors import InputError

FOLDS, FOLD_SEED = 5, 0
COSINE_WEIGHTS = (0, 1, 2, 5, 10, 20, 50, 100)  # w beside logits, which lie within some ten of 0
CHAMFER_WEIGHTS = (0, 5, 10, 20, 50, 100)  # v beside logits
COSINE_TO_CHAMFER = (0, 0.25, 0.5, 1, 2, 4)  # w beside the Chamfer similarity alone
NUM_CANDIDATES = (10, 25, 50, 100)
COSINE_BLOCK = 512  # queries whose candidates' descriptors are gathered at a time: of 100 candidates, 26 MB


class Candidates(NamedTuple):
    """Each query's candidates, in the order of the neighbour file, and the scores of the first m of them, float32."""

    neighbours: np.ndarray  # (n, k) gallery positions
    cosines: np.ndarray  # (n, m)
    chamfer: np.ndarray  # (n, m)
    logits: np.ndarray | None  # (n, m); None without a matcher


class Ranking(NamedTuple):
    """The candidates by falling score; those behind the rescored ones keep their order, at a score of -inf."""

    scores: np.ndarray  # float32 (n, k)
    positions: np.ndarray  # int64 (n, k), in the gallery


class Weights(NamedTuple):
    """`logit * logits + cosine * cosines + chamfer * Chamfer similarities`, of the first `num_candidates`.

    An infinite `cosine` is the global ranking itself.
    """

    logit: float
    cosine: float
    chamfer: float
    num_candidates: int

    def __str__(self) -> str:
        if math.isinf(self.cosine):
            return "the global ranking"
        parts = [(self.logit, "logit"), (self.cosine, "cosine"), (self.chamfer, "Chamfer")]
        terms = [name if weight == 1 else f"{weight:g} * {name}" for weight, name in parts if weight]
        return f"{' + '.join(terms) or '0'}, {self.num_candidates} candidates"


def candidate_cosines(descriptors: Tensor, gallery_descriptors: Tensor, neighbours: Tensor) -> np.ndarray:
    """Cosines float32 (n, k) of descriptors (n, d) with those of their neighbours (n, k) in the gallery (m, d)."""
    descriptors, gallery_descriptors = (F.normalize(part, dim=1) for part in (descriptors, gallery_descriptors))
    cosines = np.empty(neighbours.shape, np.float32)
    for start in range(0, len(cosines), COSINE_BLOCK):
        rows = slice(start, start + COSINE_BLOCK)
        candidates = gallery_descriptors[neighbours[rows].to(gallery_descriptors.device)]
        cosines[rows] = (candidates * descriptors[rows, None]).sum(dim=2).cpu()
    return cosines


def fused_scores(candidates: Candidates, weights: Weights) -> np.ndarray:
    """Scores (n, m) of the rescored candidates."""
    if weights[:3] == (1, 0, 0):  # the logits, to the last bit
        assert candidates.logits is not None
        return candidates.logits
    scores = np.zeros_like(candidates.cosines)
    if math.isinf(weights.cosine):
        scores -= np.arange(scores.shape[1], dtype=np.float32)
        return scores
    parts = (
        (weights.cosine, candidates.cosines),
        (weights.chamfer, candidates.chamfer),
        (weights.logit, candidates.logits),
    )
    for weight, part in parts:
        if weight:
            assert part is not None
            scores += np.float32(weight) * part
    return scores


def ranking_by(candidates: Candidates, weights: Weights) -> Ranking:
    """The first `weights.num_candidates` by falling score, stably, the others behind them."""
    neighbours, m = candidates.neighbours, min(weights.num_candidates, candidates.cosines.shape[1])
    rescored, order = torch.from_numpy(fused_scores(candidates, weights)[:, :m]).sort(
        dim=1, descending=True, stable=True
    )
    scores = np.full(neighbours.shape, -np.inf, np.float32)
    scores[:, :m] = rescored
    positions = neighbours.copy()
    positions[:, :m] = np.take_along_axis(neighbours[:, :m], order.numpy(), axis=1)
    return Ranking(scores, positions)


def grid(num_scored: int, with_logits: bool) -> list[Weights]:
    """The choices of weights, the global ranking first."""
    counts = sorted({count for count in NUM_CANDIDATES if count < num_scored} | {num_scored})
    choices = [Weights(float(with_logits), math.inf, 0, num_scored)]
    if with_logits:
        weights = product(reversed(COSINE_WEIGHTS), CHAMFER_WEIGHTS)
        return choices + [Weights(1, w, v, count) for w, v in weights for count in counts]
    return choices + [Weights(0, w, 1, count) for w in reversed(COSINE_TO_CHAMFER) for count in counts]


def describe_grid(num_scored: int, with_logits: bool) -> str:
    """The choices in a line."""
    formulas = f"Chamfer + w * cosine with w in {COSINE_TO_CHAMFER}"
    if with_logits:
        formulas += f"; logit + w * cosine + v * Chamfer with w in {COSINE_WEIGHTS}, v in {CHAMFER_WEIGHTS}"
    counts = sorted({choice.num_candidates for choice in grid(num_scored, False)})
    return f"weights are chosen by R@1 among the global ranking and, of the first {counts} candidates, {formulas}"


class Outcomes(NamedTuple):
    """What each choice of weights does for each query, bool (choices, n)."""

    hits: np.ndarray  # the first candidate is of the query's class
    unchanged: np.ndarray  # the first candidate is the global ranking's


def outcomes(candidates: Candidates, matches: np.ndarray, choices: Sequence[Weights]) -> Outcomes:
    """Of `choices`; `matches` (n, m) tells which candidates are of their query's class."""
    rows = np.arange(len(matches))
    hits, unchanged = (np.empty((len(choices), len(matches)), bool) for _ in range(2))
    numbered = enumerate(choices)
    for _, group in groupby(numbered, key=lambda item: item[1][:3]):  # of the same weights, scored once
        scores = None
        for i, weights in group:
            scores = fused_scores(candidates, weights) if scores is None else scores
            first = scores[:, : weights.num_candidates].argmax(axis=1)
            hits[i], unchanged[i] = matches[rows, first], first == 0
    return Outcomes(hits, unchanged)


def one_standard_error_choice(found: Outcomes, classes: np.ndarray) -> int:
    """The choice whose R@1 is within one standard error of the best and that leaves most first candidates unchanged.

    So moving away from the global ranking has to pay. The standard error is that of the paired difference to the best,
    summed over `classes` (n,), numbers from 0, as a class's queries share their fate.

    With x hits lost in each of c classes, t in all, t is compared with the root of c / (c - 1) * sum((x - t / c)**2).
    Squared and multiplied out that is t**2 <= sum(x**2): in whole numbers, so that rounding decides nothing.
    """
    best = found.hits.sum(axis=1).argmax()
    lost = found.hits[best].astype(np.int8) - found.hits
    by_class = np.stack([np.bincount(classes, weights=row) for row in lost])
    near = np.square(by_class.sum(axis=1)) <= np.square(by_class).sum(axis=1)
    return int(np.where(near, found.unchanged.sum(axis=1), -1).argmax())


def select_queries(candidates: Candidates, rows: np.ndarray) -> Candidates:
    """The candidates of some of the queries."""
    neighbours, cosines, chamfer, logits = candidates
    return Candidates(neighbours[rows], cosines[rows], chamfer[rows], None if logits is None else logits[rows])


class CrossFit(NamedTuple):
    """A ranking in which no query is scored by weights that were chosen on itself or its class."""

    ranking: Ranking
    by_fold: list[Weights]
    overall: Weights  # chosen on all classes: the setting for new photos


def folds(labels: np.ndarray) -> Iterator[np.ndarray]:
    """Which queries (n,) each of five folds holds; classes are dealt to them by a fixed seed, a class to one fold."""
    classes = np.unique(labels)
    fold_of = np.empty(labels.max() + 1, np.int64)
    fold_of[np.random.default_rng(FOLD_SEED).permutation(classes)] = np.arange(len(classes)) % FOLDS
    for fold in range(FOLDS):
        yield fold_of[labels] == fold


def crossfit(candidates: Candidates, labels: np.ndarray, matches: np.ndarray, with_logits: bool) -> CrossFit:
    """Weights for each fold of the query classes, chosen on the other folds by R@1 over `grid`.

    `labels` (n,) are the queries' classes, numbers from 0, and `matches` as for `outcomes`. Raises InputError with
    fewer than five classes, and where no query of a fold has a match.
    """
    if len(np.unique(labels)) < FOLDS:
        raise InputError(f"weights are chosen over {FOLDS} folds of classes, but the queries have fewer classes")
    parts = list(folds(labels))
    if not all(matches[part].any() for part in parts):
        raise InputError("in one of the folds of classes no query has a match among its candidates")
    choices = grid(candidates.cosines.shape[1], with_logits)
    found = outcomes(candidates, matches, choices)
    ranking = Ranking(np.empty(candidates.neighbours.shape, np.float32), candidates.neighbours.copy())
    by_fold = []
    for part in parts:
        chosen = choices[one_standard_error_choice(Outcomes(*(outcome[:, ~part] for outcome in found)), labels[~part])]
        by_fold.append(chosen)
        of_fold = ranking_by(select_queries(candidates, part), chosen)
        ranking.scores[part], ranking.positions[part] = of_fold
    return CrossFit(ranking, by_fold, choices[one_standard_error_choice(found, labels)])
