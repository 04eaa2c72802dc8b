"""Recalls of a run: as printed, as logged, and as recorded at its end in the forms that Sacred has given them."""

import re
from collections.abc import Iterable, Iterator

from utils.io.ranking_names import current_names
from utils.logs.json_reader import RunFiles, curve, nested, noted_number, number, whole_number
from utils.text import natural_key

Recalls = dict[int, float]  # K → recall in %

MOST_KS = 100  # the columns of more would bury those of the other runs

# possessive throughout: megabytes that look like recalls and are none are given up in one pass
NUMBER = r"(?:(?:np|numpy)\.\w++\()?+(\d++(?:\.\d++)?+)\)?+"
ENTRY = rf"(\d++):\s*+{NUMBER}"
PRINTED = re.compile(
    rf"(?:Training|Validation)\s++\[(?P<epoch>\d++)\]|(?P<recalls>\{{\s*+{ENTRY}(?:,\s*+{ENTRY})*+\s*+\}})"
)


def read_validations(files: RunFiles, metrics: dict, printed: str) -> dict[int, Recalls]:
    """Recalls by epochs trained: as logged, and as printed where they were not logged."""
    validations = _printed_validations(files, printed)
    for name in metrics:
        if logged := re.fullmatch(r"val\.recall@(\d+)", name):
            k = _k(logged[1])
            if k is None:
                files.note(f"metrics.json: the K of {name} is out of range")
                continue
            for step, recall in curve(files, metrics, name, 0, 100):
                validations.setdefault(round(step), {})[k] = recall
    kept = _first_ks(files, (k for recalls in validations.values() for k in recalls))
    return {
        epoch: {k: recalls[k] for k in kept if k in recalls}  # in order of epochs and of K
        for epoch, recalls in sorted(validations.items())
    }


def _printed_validations(files: RunFiles, printed: str) -> dict[int, Recalls]:
    validations: dict[int, Recalls] = {}
    epoch: int | None = 0
    for match in PRINTED.finditer(printed):
        if match["epoch"]:
            trained = whole_number(match["epoch"])
            epoch = None if trained is None else trained + 1
        for digits, value in re.findall(ENTRY, match["recalls"] or ""):
            k, recall = _k(digits), number(float(value), 0, 100)
            if epoch is None or k is None or recall is None:
                files.note("cout.txt: an epoch, K or recall is out of range")
            else:  # of 'cosine' and 'l2' the first: on normalised descriptors they are the same
                validations.setdefault(epoch, {}).setdefault(k, recall)
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


def recorded_recalls(files: RunFiles, info: dict) -> Recalls:
    """`info['recall']`: plain or encoded numbers under plain or mangled K, or twice so under 'cosine' and 'l2'.

    A number that jsonpickle wrote as a reference is taken from its twin, or from the object referred to. Objects are
    numbered as they are met, dicts included or not depending on jsonpickle's version, in an order that sorting the file
    has blurred: a reference counts only if one recall alone fits it, as recalls do not fall with K.
    """
    recall = nested(info, "recall")
    named = [
        (_k(match[1]), node)
        for mapping in (nested(recall, "cosine"), nested(recall, "l2"), recall)
        if isinstance(mapping, dict)
        for key, node in mapping.items()
        if (match := re.fullmatch(r"(?:json://)?(\d+)", key))
    ]
    entries = [(k, node) for k, node in named if k is not None]
    if len(entries) < len(named) or (recall is not None and not named):
        files.note("info.json: recall is not by K, or by one out of range")
    kept = _first_ks(files, (k for k, _ in entries))
    stated: Recalls = {}
    for k, node in entries:
        if k in kept and (value := number(node, 0, 100)) is not None:
            stated.setdefault(k, value)
    recalls = dict(stated)
    tables = [list(_numbered(info, counted)) for counted in (list, (list, dict))]
    for k, node in entries:
        reference = nested(node, "py/id")
        if k in kept and k not in stated and isinstance(reference, int):
            fitting = {
                table[reference]
                for table in tables
                if 0 <= reference < len(table) and table[reference] in stated.values()
                if all((value - table[reference]) * (other - k) >= 0 for other, value in stated.items())
            }
            if len(fitting) == 1:
                recalls[k] = fitting.pop()
    if unread := [f"R@{k}" for k in kept if k not in recalls]:
        files.note(f"info.json: no recall could be read for {', '.join(unread)}")
    return {k: recalls[k] for k in kept if k in recalls}


def _numbered(node: object, counted: type | tuple[type, ...]) -> Iterator:
    """The objects to which jsonpickle gives numbers, in order: the recall of an encoded number, None for others."""
    if isinstance(node, dict) and "py/object" in node:
        yield number(node, 0, 100)
        return
    if isinstance(node, counted):
        yield None
    children: Iterable = node if isinstance(node, list) else ()
    if isinstance(node, dict):
        children = (node[key] for key in sorted(node, key=natural_key))
    for child in children:
        yield from _numbered(child, counted)


def _k(digits: str) -> int | None:
    return whole_number(digits) or None  # a K of 0 is none either


def _first_ks(files: RunFiles, ks: Iterable[int]) -> list[int]:
    ordered = sorted(set(ks))
    if len(ordered) > MOST_KS:
        files.note(f"there are recalls for {len(ordered)} K: those after the first {MOST_KS} are left out")
    return ordered[:MOST_KS]


MEASURES = ("mAP@R", "R-precision", "MRR")  # beside R@K
GAIN = "R@1 over global"
INTERVAL = re.compile(r"([+-][\d.]+) \(([+-][\d.]+) to ([+-][\d.]+)\)")
MOST_MEASURES = 100  # the columns of more would bury those of the other evaluations


def read_rankings(files: RunFiles, info: dict) -> dict[str, dict[str, object]]:
    """`info['measures']` in % with, where `info['gains']` has it, the change at R@1 and its interval in words.

    Rankings of former runs have today's names.
    """
    measures = nested(info, "measures")
    if measures is not None and not isinstance(measures, dict):
        files.note("info.json: measures has no rankings")
    rankings: dict[str, dict[str, object]] = {}
    for name, row in measures.items() if isinstance(measures, dict) else ():
        if not isinstance(row, dict):
            files.note(f"info.json: ranking {name} has no measures")
            continue
        if len(row) > MOST_MEASURES:
            files.note(
                f"info.json: ranking {name} has {len(row)} measures: those after the first {MOST_MEASURES} are left out"
            )
        rankings[name] = {}
        for measure, node in list(row.items())[:MOST_MEASURES]:
            if measure in MEASURES or re.fullmatch(r"R@[1-9]\d{,8}", measure, re.ASCII):
                value = noted_number(files, f"info.json: {measure} of {name}", node, 0, 100)
                if value is not None:
                    rankings[name][measure] = value
        gain = nested(info, "gains", name, "R@1")
        if isinstance(gain, list) and len(gain) == 3:
            title = f"info.json: the gain of {name}"
            points, low, high = (noted_number(files, title, node, -100, 100) for node in gain)
            if points is not None and low is not None and high is not None:
                rankings[name][GAIN] = f"{points:+.2f} ({low:+.2f} to {high:+.2f})"
    return dict(zip(current_names(rankings), rankings.values(), strict=True))


def interval_of(gain: str) -> tuple[float, ...] | None:
    """The points, and the ends of their interval, that a gain in words names; None where it names none."""
    match = INTERVAL.fullmatch(gain)
    return tuple(map(float, match.groups())) if match else None
