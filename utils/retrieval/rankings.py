"""The rankings of an evaluation's table: by each formula for which there are scores, with their measures."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from utils.errors import InputError
from utils.io.ranking_names import FITTED, TITLES
from utils.retrieval.calibration import judge
from utils.retrieval.crossfit import describe_grid, fit_weights, matches_of
from utils.retrieval.fitted import FittedWeights
from utils.retrieval.measures import Measures, changes_of, measures_of
from utils.retrieval.ranking import Candidates, Ranking, Weights, fused_scores, in_margin, ranking_by
from utils.retrieval.results import Labels
from utils.text import text_table

# Least rank correlation of cosines with places that is plausible. Two untrained networks, each with the other's
# neighbours, had 0.76; neighbours of other photos, in lists of the same classes, up to 0.3; by chance it is 0.
MIN_CORRELATION = 0.5


def check_last_scores_differ(candidates: Candidates) -> None:
    """`check_scores_differ` of the logits, or where there are none of the Chamfer similarities."""
    logits, chamfer = candidates.logits, candidates.chamfer
    check_scores_differ(*((chamfer, "Chamfer similarity") if logits is None else (logits, "the matcher")))


def check_scores_differ(scores: np.ndarray, scorer: str) -> None:
    """Print the number of queries whose candidates all have one score (n, m); InputError if these are all queries.

    Such queries keep the global ranking's order, whose recall would pass for the scorer's.
    """
    are_equal = (scores == scores[:, :1]).all(axis=1)
    if scores.shape[1] == 1 or not are_equal.any():
        return
    if are_equal.all():
        raise InputError(
            f"{scorer} gives all candidates of each query one score, and the global ranking's order would pass for its "
            "own: its weights have collapsed or are damaged, take another checkpoint (while training, lower lr)"
        )
    print(
        f"{scorer} gives all candidates of {are_equal.sum()} of {len(scores)} queries one score: they keep the order "
        "of the global ranking"
    )


class Rankings(NamedTuple):
    """The rankings of an evaluation's table by name, with their titles."""

    rankings: dict[str, Ranking]
    titles: dict[str, str]
    written: str  # the name of the ranking in the neighbour files

    def measures(self, labels: Labels, ks: Sequence[int]) -> dict[str, Measures]:
        """The measures of each ranking."""
        return {
            name: measures_of(ranking.positions, *labels[:2], ks, labels[2]) for name, ranking in self.rankings.items()
        }


def cosine_rank_correlation(cosines: np.ndarray) -> float:
    """Spearman's rank correlation of falling cosines (n, m) with places, averaged over queries: 1 if all fall."""
    places = np.arange(cosines.shape[1])
    ranks = (-cosines).argsort(axis=1, kind="stable").argsort(axis=1)
    m = max(len(places), 2)
    return float(1 - 6 * np.square(ranks - places).sum(axis=1).mean() / (m * (m**2 - 1)))


def rank_candidates(
    candidates: Candidates, labels: Labels, fusion: str | Sequence[float] | None, own: FittedWeights | None = None
) -> Rankings:
    """Rank by each formula for which there are scores; prints the weights chosen, or why a ranking is left out.

    `own` are the checkpoint's weights: a ranking more, and one in a cascade. InputError if all candidates of each query
    have one score. `fusion` selects the ranking for the neighbour files. None: `logit`, or without a matcher `chamfer`.
    Numbers (w, v): `weighted`, by `logit + w * cosine + v * chamfer`, or without the logit. 'crossfit': the last
    ranking with cross-validated weights, or if there is none as for None. 'own': by `own`; InputError where they cannot
    be used.
    """
    has_logits, num_scored = candidates.logits is not None, candidates.cosines.shape[1]
    check_last_scores_differ(candidates)
    if (correlation := cosine_rank_correlation(candidates.cosines)) < MIN_CORRELATION:
        print(
            f"the candidates' cosines hardly fall from first to last (rank correlation {correlation:.2f}, and 1 for "
            "neighbours that this network has found): the neighbour file may be of other photos"
        )
    fixed = {"global": Weights(0, np.inf, 0, num_scored)}
    written = "logit" if has_logits else "chamfer"
    fixed[written] = Weights(1, 0, 0, num_scored) if has_logits else Weights(0, 0, 1, num_scored)
    titles = TITLES.copy()
    if own is not None and (reason := _why_not(own, num_scored, has_logits)):
        print(f"the checkpoint's own weights are not used: {reason}")
    elif own is not None:
        fixed["own"], titles["own"] = own.weights, f"own ({own.weights})"
        print(f"own: {own.weights}, fitted on {own.fitted_on}")
        if own.cascade is not None:
            fixed["cascade"] = own.cascade
            share = 100 * in_margin(candidates, own.cascade).mean()
            titles["cascade"] = f"cascade ({share:.1f} % of the logits, margin {own.margin:.3g})"
    if fusion == "own":
        check_own(own, num_scored, has_logits)
        written = "own"
    elif fusion is not None and fusion != "crossfit":
        written, (cosine, chamfer) = "weighted", map(float, fusion)
        fixed[written] = Weights(float(has_logits), cosine, chamfer, num_scored)
        titles[written] = f"{written} ({fixed[written]})"
    rankings = {name: ranking_by(candidates, weights) for name, weights in fixed.items()}
    print(describe_grid(num_scored, has_logits))
    for name, with_logits in FITTED.items():
        if with_logits and not has_logits:
            continue
        try:
            fitted = fit_weights(candidates, labels, with_logits)
        except InputError as error:
            print(f"{titles[name]}: left out, {error}")
            continue
        print(f"{titles[name]}: weights chosen on the other classes: {'; '.join(map(str, fitted.by_fold))}")
        print(f"{titles[name]}: for new photos, chosen on all classes: {fitted.overall}")
        rankings[name] = fitted.ranking
        if fusion == "crossfit":
            written = name
    if fusion == "crossfit" and written not in FITTED:
        print(f"fusion=crossfit: no weights could be chosen, the ranking that is written is {titles[written]}")
    return Rankings(rankings, titles, written)


def check_own(own: FittedWeights | None, num_scored: int, has_logits: bool) -> None:
    """Raise InputError unless fusion='own' can rank candidates of which so many are scored."""
    if reason := _why_not(own, num_scored, has_logits):
        raise InputError(f"fusion='own' ranks by the checkpoint's own weights: {reason}")


def _why_not(own: FittedWeights | None, num_scored: int, has_logits: bool) -> str | None:
    """Why weights cannot rank candidates of which so many are scored."""
    if own is None:
        return "it has none; keep_fusion=True fits them on validation images"
    if own.num_candidates > num_scored:
        return f"they are for {own.num_candidates} candidates, and {num_scored} are scored"
    if own.logit and not has_logits:
        return "they need logits"
    return None


def report_matches(candidates: Candidates, labels: Labels, own: FittedWeights, info: dict) -> None:
    """Print, and keep in `info['matches']`, how a checkpoint's threshold for a match, and its probabilities, do on
    classes that they were not fitted on."""
    if own.calibration is None or _why_not(own, candidates.cosines.shape[1], candidates.logits is not None):
        return
    scored = slice(own.num_candidates)
    scores, matches = fused_scores(candidates, own.weights)[:, scored], matches_of(candidates, labels)[:, scored]
    judged = judge(own.calibration, scores, matches, labels.queries)
    if judged is None:
        return
    info["matches"] = judged._asdict() | {"reliability": [part._asdict() for part in judged.reliability]}
    low, high = (100 * end for end in judged.interval)
    print(
        f"own, at the threshold for a false match rate of {100 * own.calibration.false_match_rate:g} % among "
        f"candidates: {100 * judged.false_match_rate:.2f} % false matches here, and "
        f"{100 * judged.false_non_match_rate:.2f} % of true pairs are missed (95 % interval {low:.2f} to {high:.2f})"
    )


def report_rankings(
    rankings: Rankings, measures: Mapping[str, Measures], classes: np.ndarray, ks: Sequence[int], info: dict
) -> None:
    """Print the table of rankings, and the changes from the global ranking to each; `classes` are the queries'.

    `info['measures']` gets measures in % by ranking and name, `info['gains']` the change in points with the ends of its
    interval by ranking and R@K.
    """
    changes = {
        name: changes_of(measures["global"].ranks, measures[name].ranks, classes, ks)
        for name in rankings.rankings
        if name != "global"
    }
    info["measures"] = {name: row.values for name, row in measures.items()}
    info["gains"] = {name: {f"R@{change.k}": change.interval for change in row} for name, row in changes.items()}
    print(text_table([{"ranking": rankings.titles[name], **row.values} for name, row in measures.items()]))
    print_notes(measures["global"], rankings.rankings["global"].positions.shape[1])
    for name, row in changes.items():
        print(*(f"{rankings.titles[name]}, {change}" for change in row), sep="\n")


def print_notes(measures: Measures, columns: int) -> None:
    """Print how many queries the measures do not cover."""
    if measures.without_others:
        print(
            f"{measures.without_others} queries have no image of their class in the gallery, themselves left out: "
            "mAP@R, R-precision and MRR leave them out"
        )
    if measures.cut_short:
        print(
            f"{measures.cut_short} queries have more than {columns} images of their class in the gallery: mAP@R and "
            f"R-precision count over the {columns} neighbours there are"
        )
