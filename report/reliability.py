"""Reliability diagrams: how often pairs are of one product whose predicted probability is near a number."""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from utils.logs.json_reader import nested, number, read_json
from utils.logs.runs import Run
from utils.text import printable

Points = list[tuple[float, float, float]]  # predicted and observed probability, and the number of pairs


def reliability_points(run: Run) -> Points:
    """The points in an evaluation's info.json; none where it has not judged probabilities, or they are damaged."""
    bins: Any = nested(read_json(run.folder / "info.json"), "matches", "reliability")
    try:
        return [(number(part["predicted"]), number(part["observed"]), number(part["num_pairs"])) for part in bins or []]
    except (ValueError, KeyError, TypeError):
        return []


def reliability_diagram(points: Sequence[tuple[Run, Points]]) -> Figure:
    """A line for each evaluation; on the diagonal probabilities are right. Dots grow with the number of pairs."""
    figure = Figure(figsize=(6, 5), layout="constrained")
    panel = figure.subplots()
    panel.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
    for run, of_run in points:
        x, y, n = zip(*of_run, strict=True)
        (line,) = panel.plot(x, y, label=printable(run.folder).replace("$", r"\$"))
        panel.scatter(x, y, [10 + 90 * count / max(n) for count in n], color=line.get_color())
    panel.set(xlabel="predicted probability of one product", ylabel="proportion of such pairs")
    panel.set(xlim=(0, 1), ylim=(0, 1))
    panel.grid(alpha=0.3)
    figure.legend(loc="outside lower center")
    return figure
