"""Curves of runs, and their means over seeds: few enough points for a page."""

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

from utils.logs.groups import Group
from utils.logs.plots import epoch_means
from utils.logs.runs import Run
from utils.text import printable

MOST_POINTS = 400  # of a curve
Points = list[tuple[float, ...]]


def has_curves(run: Run) -> bool:
    """Whether a run has logged more than a point."""
    return bool(run.losses) or len(run.validations) > 1


def curves(runs: Sequence[Run], groups: Sequence[Group]) -> list[dict[str, Any]]:
    """The runs' `loss` (its means over epochs), `iterations` (the loss itself, thinned) and `recalls` by K, as points
    (epochs, value); then means over the seeds of a group, as points (epochs, mean, sample standard deviation).
    """
    shown = [_of_run(run) for run in runs]
    folders = [run.folder for run in runs]
    for number, group in enumerate(groups, 1):
        parts = [shown[folders.index(run.folder)] for run in group.runs if run.folder in folders]
        if len(parts) > 1:
            shown.append(_mean(parts, f"group {number}: mean of {len(parts)} seeds"))
    return shown


def _of_run(run: Run) -> dict[str, Any]:
    ks = sorted({k for recalls in run.validations.values() for k in recalls})
    recalls = {k: [(epoch, at[k]) for epoch, at in run.validations.items() if k in at] for k in ks}
    return {
        "name": printable(run.folder),
        "files": [printable(run.folder / "metrics.json")],
        "seed": printable(run.config.get("seed")),
        "iterations": thinned(run.losses),
        "loss": thinned(epoch_means(run.losses)),
        "recalls": {str(k): thinned(points) for k, points in recalls.items()},
    }


def _mean(parts: list[dict[str, Any]], name: str) -> dict[str, Any]:
    ks = [k for k in parts[0]["recalls"] if all(k in part["recalls"] for part in parts)]
    return {
        "name": name,
        "files": [file for part in parts for file in part["files"]],
        "seed": ", ".join(part["seed"] for part in parts),
        "iterations": [],
        "loss": _mean_points([part["loss"] for part in parts]),
        "recalls": {k: _mean_points([part["recalls"][k] for part in parts]) for k in ks},
    }


def _mean_points(curves: list[Points]) -> Points:
    """(x, mean, sample standard deviation) at each x that all curves have."""
    by_x: list[dict[float, float]] = [{point[0]: point[1] for point in curve} for curve in curves]
    columns = {x: [values[x] for values in by_x] for x in by_x[0] if all(x in values for values in by_x)}
    return [(x, fmean(values), stdev(values)) for x, values in columns.items()]


def thinned(points: Sequence[tuple[float, float]]) -> Points:
    """At most MOST_POINTS points, means of as many neighbouring ones each."""
    size = -(-len(points) // MOST_POINTS) or 1
    parts = [points[start : start + size] for start in range(0, len(points), size)]
    return [(fmean(x for x, _ in part), fmean(y for _, y in part)) for part in parts]
