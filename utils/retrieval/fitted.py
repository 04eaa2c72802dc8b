"""Weights fitted for new photos, with what is known of them: what files keep beside a network."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from utils.errors import InputError
from utils.retrieval.calibration import Calibration, calibrate
from utils.retrieval.crossfit import fit_weights, matches_of
from utils.retrieval.intervals import mean_interval
from utils.retrieval.measures import first_match_ranks, precisions_of, relevant_of
from utils.retrieval.ranking import WEIGHT, Candidates, Weights, fused_scores
from utils.retrieval.results import Labels
from utils.settings import LARGEST, TEXT, Rule, Rules, check_settings, number, whole_number

CHANGED, PLACES = 0.001, 5  # of `margin_of`
FINITE, PROPORTION, COUNT = number(-LARGEST), number(0, 1), whole_number(1)
GAIN = Rule(
    "three numbers of points, the last two the ends of an interval",
    lambda value: isinstance(value, list | tuple) and len(value) == 3 and all(map(FINITE.accepts, value)),
)
CALIBRATION_RULES: Rules = {
    "slope": FINITE,
    "offset": FINITE,
    "true_pairs": PROPORTION,
    "threshold": FINITE,
    "false_match_rate": PROPORTION,
    "num_pairs": COUNT,
    "num_classes": COUNT,
}
RULES: Rules = {
    "logit": WEIGHT,
    "cosine": WEIGHT,
    "chamfer": WEIGHT,
    "num_candidates": COUNT,
    "fitted_on": TEXT,
    "num_queries": COUNT,
    "num_classes": COUNT,
    "recall_gain": GAIN,
    "precision_gain": GAIN,
    "calibration": Rule("the numbers of a calibration, or None", lambda value: isinstance(value, Mapping | None)),
    "margin": number(0).or_none(),
}


class FittedWeights(NamedTuple):
    """Rank the first `num_candidates` by `logit * logits + cosine * cosines + chamfer * Chamfer similarities`.

    The gains over the global ranking are of the ranking with cross-fitted weights: none was chosen on the classes that
    it ranks. Each is points with the ends of its 95 % interval, as `changes_of` has them.
    """

    logit: float
    cosine: float
    chamfer: float
    num_candidates: int
    fitted_on: str  # the name of the file that lists the photos
    num_queries: int
    num_classes: int
    recall_gain: tuple[float, float, float]  # of R@1
    precision_gain: tuple[float, float, float]  # of mAP@R
    calibration: Calibration | None  # of the scores ranked by
    margin: float | None = None  # of the cascade, as `margin_of` has it; None without logits

    @property
    def weights(self) -> Weights:
        return Weights(self.logit, self.cosine, self.chamfer, self.num_candidates)

    @property
    def cascade(self) -> Weights | None:
        """The weights with their margin."""
        return None if self.margin is None or not self.logit else self.weights._replace(margin=self.margin)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, texts, lists and dictionaries, for JSON and checkpoints."""
        calibration = None if self.calibration is None else self.calibration._asdict()
        gains = {"recall_gain": list(self.recall_gain), "precision_gain": list(self.precision_gain)}
        return {**self._asdict(), **gains, "calibration": calibration}

    @classmethod
    def from_dict(cls, record: object) -> "FittedWeights":
        """Read what `to_dict` gives; InputError if it is anything else, naming what."""
        if isinstance(record, Mapping):
            record = {"margin": None, **record}  # older files have none
        values = _checked(record, RULES, "weights")
        if values["calibration"] is not None:
            checked = _checked(values["calibration"], CALIBRATION_RULES, "weights.calibration")
            values["calibration"] = Calibration(**checked)
        for name in ("recall_gain", "precision_gain"):
            values[name] = tuple(values[name])
        if not any(values[name] for name in ("logit", "cosine", "chamfer")):
            raise InputError("weights of 0 rank nothing")
        return cls(**values)

    @classmethod
    def of_file(cls, record: object, path: Path | str) -> "FittedWeights | None":
        """`from_dict` of what the file `path` has as its record, if any; InputError, naming it, for a damaged one."""
        try:
            return None if record is None else cls.from_dict(record)
        except InputError as error:
            raise InputError(f"{path}: {error}: fit them again, or take another file") from error


def _checked(record: object, rules: Rules, name: str) -> dict[str, Any]:
    """A copy of a record that has what the rules name and allow, and nothing else."""
    if not isinstance(record, Mapping) or set(record) != set(rules):
        raise InputError(f"{name} must be a record of {', '.join(rules)}")
    check_settings(record, rules, f"{name}.")
    return dict(record)


def fit(candidates: Candidates, labels: Labels, with_logits: bool, fitted_on: str) -> FittedWeights:
    """Choose weights on all classes, as `crossfit` does, judge them by cross-fitting, and calibrate their scores.

    Where the global ranking is best the weights rank by the cosine. With logits they get the margin of a cascade.
    InputError as of `crossfit`, and if a score is not finite.
    """
    fitted = fit_weights(candidates, labels, with_logits)
    weights = fitted.overall
    if math.isinf(weights.cosine):
        weights = Weights(0, 1, 0, weights.num_candidates)
    scored = slice(weights.num_candidates)
    scores = fused_scores(candidates, weights)[:, scored]
    recall_gain, precision_gain = _gains(candidates.neighbours, fitted.ranking.positions, labels)
    return FittedWeights(
        logit=float(weights.logit),
        cosine=float(weights.cosine),
        chamfer=float(weights.chamfer),
        num_candidates=weights.num_candidates,
        fitted_on=fitted_on,
        num_queries=len(labels.queries),
        num_classes=len(np.unique(labels.queries)),
        recall_gain=recall_gain,
        precision_gain=precision_gain,
        calibration=calibrate(scores, matches_of(candidates, labels)[:, scored], labels.queries),
        margin=margin_of(candidates, weights) if weights.logit else None,
    )


def margin_of(candidates: Candidates, weights: Weights) -> float:
    """The smallest margin with which a cascade changes at most the proportion CHANGED of first results.

    A first result changes if it lies further than the margin behind the best without logits. A few hundred queries say
    too little of one in a thousand: so each counts PLACES times, whole, and then without its first results, one by one.
    Results behind the first of a whole query may change more often.
    """
    complete, without = (
        fused_scores(candidates, of_scores)[:, : weights.num_candidates]
        for of_scores in (weights, weights._replace(logit=0))
    )
    order = np.argsort(-complete, axis=1, kind="stable")
    without = np.take_along_axis(without, order, axis=1)
    best = np.maximum.accumulate(without[:, ::-1], axis=1)[:, ::-1]
    return float(np.quantile((best - without)[:, :PLACES], 1 - CHANGED, method="inverted_cdf"))


def _gains(before: np.ndarray, after: np.ndarray, labels: Labels) -> list[tuple[float, float, float]]:
    """The changes of R@1 and of mAP@R between two rankings' positions (n, k)."""
    relevant = relevant_of(*labels)
    values = [
        (first_match_ranks(positions, *labels[:2]) < 1, precisions_of(positions, *labels[:2], relevant)[0])
        for positions in (before, after)
    ]
    gains = []
    for old, new, counted in zip(*values, (relevant >= 0, relevant > 0), strict=True):
        change = 100 * (new.astype(np.float64) - old)[counted]
        low, high = np.clip(mean_interval(change, labels.queries[counted]), -100, 100).tolist()
        gains.append((round(float(change.mean()), 2), round(low, 2), round(high, 2)))
    return gains
