"""Recalls of a run: as printed, as logged, and as recorded at its end in the forms that Sacred has given them."""

import re
from collections.abc import Mapping

from utils.io.ranking_names import current_names
from utils.logs.json_reader import curve, nested, number

Recalls = dict[int, float]  # K → recall in %

K = r"[1-9]\d{,8}"
# possessive throughout: megabytes that look like recalls and are none are given up in one pass
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
            for step, recall in curve(metrics, name, 0, 100):
                validations.setdefault(round(step), {})[int(logged[1])] = recall
    return {epoch: dict(sorted(recalls.items())) for epoch, recalls in sorted(validations.items())}


def _printed_validations(printed: str) -> dict[int, Recalls]:
    validations: dict[int, Recalls] = {}
    epoch = 0
    for match in PRINTED.finditer(printed):
        if match["epoch"]:
            epoch = int(match["epoch"]) + 1
        for k, recall in re.findall(ENTRY, match["recalls"] or ""):
            if float(recall) <= 100:  # of 'cosine' and 'l2' the first: on normalised descriptors they are the same
                validations.setdefault(epoch, {}).setdefault(int(k), float(recall))
    return validations


def best_recalls(recorded: Recalls, validations: dict[int, Recalls]) -> tuple[Recalls, int | None]:
    """The best recalls and their epoch, by the smallest K; of equal ones the last, as checkpoints are saved.

    The recorded ones stand alone, without an epoch, when no validation reaches them.
    """
    k = min((k for recalls in (recorded, *validations.values()) for k in recalls), default=1)
    ranked = [(round(recalls[k], 2), epoch) for epoch, recalls in validations.items() if k in recalls]
    reached, epoch = max(ranked, default=(-1.0, 0))
    reference = round(recorded.get(k, 0.0), 2)
    if reached < reference or not ranked:
        return recorded, None
    return (recorded if reached == reference else {}) | validations[epoch], epoch


def recorded_recalls(info: Mapping) -> Recalls:
    """`info['recall']`: plain or encoded numbers under plain or mangled K, or twice so under 'cosine' and 'l2'.

    A number that jsonpickle wrote as a reference is left out: cout.txt has it.
    """
    recall = nested(info, "recall")
    recalls: Recalls = {}
    for mapping in (nested(recall, "cosine"), nested(recall, "l2"), recall):
        for key, node in mapping.items() if isinstance(mapping, dict) else ():
            k = re.fullmatch(rf"(?:json://)?({K})", key)
            if k and not (isinstance(node, dict) and "value" not in node):
                recalls.setdefault(int(k[1]), number(node, 0, 100))
    return dict(sorted(recalls.items()))


MEASURES = ("mAP@R", "R-precision", "MRR")  # beside R@K
GAIN = "R@1 over global"
INTERVAL = re.compile(r"([+-][\d.]+) \(([+-][\d.]+) to ([+-][\d.]+)\)")


def read_rankings(info: Mapping) -> dict[str, dict[str, object]]:
    """`info['measures']` in % with, where `info['gains']` has it, the change at R@1 and its interval in words.

    Rankings of former runs have today's names.
    """
    rankings: dict[str, dict[str, object]] = {}
    for name, row in info.get("measures", {}).items():
        rankings[name] = {
            measure: number(value, 0, 100)
            for measure, value in row.items()
            if measure in MEASURES or re.fullmatch(f"R@{K}", measure)
        }
        if (gain := nested(info, "gains", name, "R@1")) is not None:
            points, low, high = (number(value, -100, 100) for value in gain)  # type: ignore[attr-defined]
            rankings[name][GAIN] = f"{points:+.2f} ({low:+.2f} to {high:+.2f})"
    return dict(zip(current_names(rankings), rankings.values(), strict=True))


def interval_of(gain: str) -> tuple[float, ...] | None:
    """The points, and the ends of their interval, that a gain in words names; None where it names none."""
    match = INTERVAL.fullmatch(gain)
    return tuple(map(float, match.groups())) if match else None
