"""Recalls of a run: printed in cout.txt, logged in metrics.json, and recorded at its end in info.json."""

import re
from collections.abc import Iterable, Mapping

from utils.io.ranking_names import current_names
from utils.logs.json_reader import curve, nested, number

Recalls = dict[int, float]  # K → recall in %

K = r"[1-9]\d{,8}"
# possessive quantifiers: a cout.txt of megabytes is read in one pass, without backtracking
NUMBER = r"(?:(?:np|numpy)\.\w++\()?+(\d++(?:\.\d++)?+)\)?+"
ENTRY = rf"({K}+):\s*+{NUMBER}"
PRINTED = re.compile(
    rf"(?:Training|Validation)\s++\[(?P<epoch>\d{{1,9}}+)\]|(?P<recalls>\{{\s*+{ENTRY}(?:,\s*+{ENTRY})*+\s*+\}})"
)


def read_validations(metrics: Mapping, printed: str) -> dict[int, Recalls]:
    """Recalls by epochs trained: as logged, and as printed where they were not logged."""
    validations = _printed_validations(printed)
    for name in metrics:
        if logged := re.fullmatch(rf"val\.recall@({K})", name):
            for step, recall in curve(metrics, name):
                validations.setdefault(round(step), {})[int(logged[1])] = recall
    return {epoch: dict(sorted(recalls.items())) for epoch, recalls in sorted(validations.items())}


def _printed_validations(printed: str) -> dict[int, Recalls]:
    validations: dict[int, Recalls] = {}
    epoch = 0
    for match in PRINTED.finditer(printed):
        if match["epoch"]:
            epoch = int(match["epoch"]) + 1
        for k, recall in re.findall(ENTRY, match["recalls"] or ""):
            # 'cosine' stands before 'l2'; both are the same for normalised descriptors
            validations.setdefault(epoch, {}).setdefault(int(k), float(recall))
    return validations


def best_recalls(
    recorded: Recalls, validations: dict[int, Recalls], precisions: Iterable[tuple[float, float]] = ()
) -> tuple[Recalls, int | None]:
    """The best recalls and their epoch: by mAP@R where the run has `precisions`, (epoch, mAP@R), else by the smallest
    K. Of equal epochs the last one counts, as for checkpoints.

    Where no validation reaches the recorded recalls, these are returned, without an epoch.
    """
    if chosen := max(((precision, round(epoch)) for epoch, precision in precisions), default=None):
        return validations.get(chosen[1], recorded), chosen[1]
    k = min((k for recalls in (recorded, *validations.values()) for k in recalls), default=1)
    ranked = [(round(recalls[k], 2), epoch) for epoch, recalls in validations.items() if k in recalls]
    reached, epoch = max(ranked, default=(-1.0, 0))
    reference = round(recorded.get(k, 0.0), 2)
    if reached < reference or not ranked:
        return recorded, None
    return (recorded if reached == reference else {}) | validations[epoch], epoch


def recorded_recalls(info: Mapping) -> Recalls:
    """`info['recall']`: recalls by K, or such a dictionary each under 'cosine' and 'l2'.

    Sacred writes K as `10` or `json://10`. A number that jsonpickle wrote as a reference is left out: cout.txt has it.
    """
    recall = nested(info, "recall")
    recalls: Recalls = {}
    for mapping in (nested(recall, "cosine"), nested(recall, "l2"), recall):
        for key, node in mapping.items() if isinstance(mapping, dict) else ():
            k = re.fullmatch(rf"(?:json://)?({K})", key)
            if k and not (isinstance(node, dict) and "value" not in node):
                recalls.setdefault(int(k[1]), number(node))
    return dict(sorted(recalls.items()))


MEASURES = ("mAP@R", "R-precision", "MRR")  # beside R@K
GAIN = "R@1 over global"


def read_rankings(info: Mapping) -> dict[str, dict[str, object]]:
    """`info['measures']` in %, with the change at R@1 and its interval as a text where `info['gains']` has them.

    Rankings of former runs have today's names.
    """
    rankings: dict[str, dict[str, object]] = {}
    for name, row in info.get("measures", {}).items():
        rankings[name] = {
            measure: number(value)
            for measure, value in row.items()
            if measure in MEASURES or re.fullmatch(f"R@{K}", measure)
        }
        if (gain := nested(info, "gains", name, "R@1")) is not None:
            points, low, high = map(number, gain)  # type: ignore[call-overload]
            rankings[name][GAIN] = f"{points:+.2f} ({low:+.2f} to {high:+.2f})"
    return dict(zip(current_names(rankings), rankings.values(), strict=True))
