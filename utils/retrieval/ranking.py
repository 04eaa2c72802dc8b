"""Rankings of candidates by a weighted sum of scores.

A candidate's fused score is `logit + w * cosine + v * chamfer`: the matcher's logit, the cosine of the two global
descriptors, the Chamfer similarity of the two feature maps. AMES and LoCoRe fuse
`l * cosine + (1 - l) * sigmoid(g * logit)` instead.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from utils.settings import number

COSINE_BLOCK = 512  # queries whose candidates' descriptors are gathered at a time: of 100 candidates, 26 MB


WEIGHT = number(0, 1_000_000)  # of a score in the sum that ranks


class Candidates(NamedTuple):
    """Each query's candidates in the order of the neighbour file, and float32 scores of the first m of them."""

    neighbours: np.ndarray  # (n, k) gallery positions
    cosines: np.ndarray  # (n, m)
    chamfer: np.ndarray  # (n, m)
    logits: np.ndarray | None  # (n, m); None without a matcher


class Ranking(NamedTuple):
    """Candidates by falling score; those behind the m rescored ones keep their order, with a score of -inf."""

    scores: np.ndarray  # float32 (n, k)
    positions: np.ndarray  # int64 (n, k), in the gallery


class Weights(NamedTuple):
    """Rank the first `num_candidates` by `logit * logits + cosine * cosines + chamfer * Chamfer similarities`.

    An infinite `cosine` stands for the global ranking. With a finite `margin` they rank in a cascade: logits are those
    of candidates `in_margin`, and the others count with the lowest of them. So the others stay behind.
    """

    logit: float
    cosine: float
    chamfer: float
    num_candidates: int
    margin: float = math.inf

    def __str__(self) -> str:
        if math.isinf(self.cosine):
            return "the global ranking"
        parts = [(self.logit, "logit"), (self.cosine, "cosine"), (self.chamfer, "chamfer")]
        terms = [name if weight == 1 else f"{weight:g} * {name}" for weight, name in parts if weight]
        cascade = f", logit only within {self.margin:.3g} of the best" if math.isfinite(self.margin) else ""
        return f"{' + '.join(terms) or '0'}, {self.num_candidates} candidates{cascade}"


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
    """Weighted sums of scores (n, m) of the rescored candidates."""
    if weights[:3] == (1, 0, 0):  # the logits, to the last bit
        assert candidates.logits is not None
        return candidates.logits
    scores = np.zeros_like(candidates.cosines)
    if math.isinf(weights.cosine):
        scores -= np.arange(scores.shape[1], dtype=np.float32)
        return scores
    terms = (
        (weights.cosine, candidates.cosines),
        (weights.chamfer, candidates.chamfer),
        (weights.logit, candidates.logits),
    )
    for weight, values in terms:
        if weight:
            assert values is not None
            scores += np.float32(weight) * values
    return scores


def in_margin(candidates: Candidates, weights: Weights) -> np.ndarray:
    """Which of the first `weights.num_candidates` (n, m) are so near the best without logits that they need one."""
    scores = fused_scores(candidates, weights._replace(logit=0))[:, : weights.num_candidates]
    with np.errstate(invalid="ignore"):  # of padding, whose scores are -inf
        return ~(scores.max(axis=1, keepdims=True) - scores > weights.margin)


def with_lowest_logits(candidates: Candidates, weights: Weights) -> Candidates:
    """The first `weights.num_candidates`, with the lowest logit of those `in_margin` for the others."""
    is_in, m = in_margin(candidates, weights), weights.num_candidates
    assert candidates.logits is not None
    logits = candidates.logits[:, :m]
    lowest = logits.min(axis=1, keepdims=True, where=is_in, initial=np.inf)
    return Candidates(
        candidates.neighbours, candidates.cosines[:, :m], candidates.chamfer[:, :m], np.where(is_in, logits, lowest)
    )


def ranking_by(candidates: Candidates, weights: Weights) -> Ranking:
    """Sort the first `weights.num_candidates` by falling score, stably; the others follow in their order."""
    neighbours, m = candidates.neighbours, min(weights.num_candidates, candidates.cosines.shape[1])
    if math.isfinite(weights.margin):
        candidates = with_lowest_logits(candidates, weights)
    rescored, order = torch.from_numpy(fused_scores(candidates, weights)[:, :m]).sort(
        dim=1, descending=True, stable=True
    )
    scores = np.full(neighbours.shape, -np.inf, np.float32)
    scores[:, :m] = rescored
    positions = neighbours.copy()
    positions[:, :m] = np.take_along_axis(neighbours[:, :m], order.numpy(), axis=1)
    return Ranking(scores, positions)


def select_queries(candidates: Candidates, rows: np.ndarray) -> Candidates:
    """The candidates of the queries that `rows` selects."""
    neighbours, cosines, chamfer, logits = candidates
    return Candidates(neighbours[rows], cosines[rows], chamfer[rows], None if logits is None else logits[rows])
