"""Rankings of an evaluation: the measures of each, and what it gains over the global one."""

import re

from utils.logs.files import RunFiles
from utils.logs.values import nested, noted_number

MEASURES = ("mAP@R", "R-precision", "MRR")  # beside R@K
GAIN = "R@1 over global"
INTERVAL = re.compile(r"([+-][\d.]+) \(([+-][\d.]+) to ([+-][\d.]+)\)")
MOST_MEASURES = 100  # the columns of more would bury those of the other evaluations


def read_rankings(files: RunFiles, info: dict) -> dict[str, dict[str, object]]:
    """`info['measures']` in % with, where `info['gains']` has it, the change at R@1 and its interval in words."""
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
    return rankings


def interval_of(gain: str) -> tuple[float, ...] | None:
    """The points, and the ends of their interval, that a gain in words names; None where it names none."""
    match = INTERVAL.fullmatch(gain)
    return tuple(map(float, match.groups())) if match else None
