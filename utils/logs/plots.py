"""Loss and recall curves of runs, and their means over seeds."""

import warnings
from collections.abc import Sequence
from itertools import cycle, groupby
from pathlib import Path
from statistics import fmean, stdev
from typing import IO, Literal

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from utils.errors import InputError, listing
from utils.io.atomic import atomic_write
from utils.logs.groups import Group
from utils.logs.runs import Run
from utils.text import printable, shortened

MARKERS = (".", "s", "^", "x", "D", "v", "*", "P")  # one for each ten runs, as there are ten colours
LINE_STYLES: tuple[Literal["-", "--", "-.", ":"], ...] = ("-", "--", "-.", ":")  # one for each K
BELOW = 0.5  # matplotlib's zorder of the losses of each iteration: below all other lines
LONGEST_NAME = 72  # columns; so many of the widest letters are as wide as the figure

Points = list[tuple[float, float]]


def has_curves(run: Run) -> bool:
    """Whether a run has logged losses, or more than one validation."""
    return bool(run.losses) or len(run.validations) > 1


def plot_runs(runs: Sequence[Run], groups: Sequence[Group], path: Path) -> None:
    """Save the curves of the runs that have curves.

    InputError when no run has any, when matplotlib does not know the ending of `path`, or when it cannot be written.
    """
    with_curves = [run for run in runs if has_curves(run)]
    if not with_curves:
        raise InputError(f"{path} was not drawn: none of the runs has logged train.loss or val.recall@K")
    figure = curves(with_curves, groups)
    kind = path.suffix.removeprefix(".").lower()
    if kind not in figure.canvas.get_supported_filetypes():
        raise InputError(f"{path} was not drawn: its ending must be one of {listing(('.png', '.pdf', '.svg'))}")
    with atomic_write(path) as file:
        save(figure, file, kind)


def save(figure: Figure, file: IO[bytes], kind: str) -> None:
    """Write a figure. Texts of an SVG are written as texts: a browser has more glyphs than matplotlib."""
    with rc_context({"svg.fonttype": "none"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(file, format=kind)


def curves(runs: Sequence[Run], groups: Sequence[Group]) -> Figure:
    """train.loss and val.recall@K over epochs: a colour and marker for each run, a line style for each K.

    A group of which two or more of these runs are part also has its mean, in a band of one sample standard deviation.
    """
    figure = Figure(figsize=(11, 4.5 + 0.2 * len(runs)), layout="constrained")
    loss_panel, recall_panel = figure.subplots(1, 2)
    ks = sorted({k for run in runs for recalls in run.validations.values() for k in recalls})
    line_styles = dict(zip(ks, cycle(LINE_STYLES), strict=False))
    for i, run in enumerate(runs):
        style = _style(i)
        loss_panel.plot(*_columns(run.losses), color=style["color"], alpha=0.25, linewidth=0.7, zorder=BELOW)
        loss_panel.plot(*_columns(epoch_means(run.losses)), **style)
        for k, line_style in line_styles.items():
            points = _recalls(run, k)
            marker_step = 1 + len(points) // 10  # more markers would hide the line style
            recall_panel.plot(*_columns(points), linestyle=line_style, markevery=marker_step, **style)
    handles = [Line2D([], [], **_style(i)) for i in range(len(runs))]
    names = [shortened(printable(run.folder), LONGEST_NAME).replace("$", r"\$") for run in runs]  # $ begins a formula
    folders = [run.folder for run in runs]
    for number, group in enumerate(groups, 1):
        members = [run for run in group.runs if run.folder in folders]
        if len(members) < 2:
            continue
        color = _style(folders.index(members[0].folder))["color"]
        _draw_mean(loss_panel, [epoch_means(run.losses) for run in members], color, "-")
        for k, line_style in line_styles.items():
            _draw_mean(recall_panel, [_recalls(run, k) for run in members], color, line_style)
        handles.append(Line2D([], [], color=color, linewidth=3))
        names.append(f"group {number}: mean of {len(members)} seeds")
    loss_panel.set_rasterization_zorder(BELOW + 0.1)  # losses of each iteration would take megabytes as paths
    loss_panel.set(title="train.loss, and its mean over each epoch", xlabel="epoch", ylabel="loss")
    recall_panel.set(title="val.recall@K", xlabel="epochs trained", ylabel="recall [%]")
    for panel in (loss_panel, recall_panel):
        panel.grid(alpha=0.3)
    if line_styles:
        k_handles = [Line2D([], [], color="black", linestyle=line_style) for line_style in line_styles.values()]
        recall_panel.legend(k_handles, [f"R@{k}" for k in line_styles])
    figure.legend(handles, names, loc="outside lower center")
    return figure


def _draw_mean(panel: Axes, curves: Sequence[Points], color: str, line_style) -> None:
    """The mean at each x that all curves have, in a band of one sample standard deviation."""
    by_x = [dict(points) for points in curves]
    columns = {x: [values[x] for values in by_x] for x in by_x[0] if all(x in values for values in by_x)}
    means, deviations = np.array([(fmean(column), stdev(column)) for column in columns.values()]).reshape(-1, 2).T
    panel.plot(list(columns), means, color=color, linestyle=line_style, linewidth=3)
    panel.fill_between(list(columns), means - deviations, means + deviations, color=color, alpha=0.15, linewidth=0)


def _recalls(run: Run, k: int) -> Points:
    return [(epoch, recalls[k]) for epoch, recalls in run.validations.items() if k in recalls]


def _style(i: int) -> dict:
    return {"color": f"C{i % 10}", "marker": MARKERS[i // 10 % len(MARKERS)], "markersize": 4}


def epoch_means(losses: Points) -> Points:
    """(middle of the epoch, mean loss) for each epoch; `losses` are (epoch with its fraction, loss), in order."""
    epochs = groupby(losses, key=lambda point: int(point[0]))
    return [(epoch + 0.5, fmean(loss for _, loss in points)) for epoch, points in epochs]


def _columns(points: Points) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]
