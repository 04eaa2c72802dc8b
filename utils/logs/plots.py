"""Loss and recall curves of runs, and their means over seeds."""

import warnings
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from statistics import fmean, stdev
from typing import IO, Literal

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
NUM_TOLD_APART = 10 * len(MARKERS)
LINE_STYLES: tuple[Literal["-", "--", "-.", ":"] | tuple[float, tuple[int, ...]], ...] = (  # one for each K
    *("-", "--", "-.", ":"),
    *((0, (8, 3)), (0, (6, 1, 1, 1, 1, 1)), (0, (3, 5)), (0, (1, 4))),
)
FAINT = 0.5  # the order of drawing: below all else
LONGEST_NAME = 72  # columns: of the widest letters they are as wide as the figure


Points = list[tuple[float, float]]


def has_curves(run: Run) -> bool:
    """Whether a run has logged more than a point."""
    return bool(run.losses) or len(run.validations) > 1


def plot_runs(runs: Sequence[Run], groups: Sequence[Group], path: Path) -> None:
    """Save `curves` of the runs that have such.

    Raises InputError when no run has a curve, or when `path` has an ending that matplotlib does not know or cannot be
    written.
    """
    drawn = [run for run in runs if has_curves(run)]
    if not drawn:
        raise InputError(f"{path} was not drawn: none of the runs has logged train.loss or val.recall@K")
    figure = curves(drawn, groups)
    kind = path.suffix.removeprefix(".").lower()
    if kind not in figure.canvas.get_supported_filetypes():
        raise InputError(f"{path} was not drawn: its ending must be one of {listing(('.png', '.pdf', '.svg'))}")
    with atomic_write(path) as file:
        save(figure, file, kind)


def save(figure: Figure, file: IO[bytes], kind: str) -> None:
    """Write a figure; texts of an SVG stay texts, for which a browser has more glyphs than matplotlib."""
    with rc_context({"svg.fonttype": "none"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(file, format=kind)


def curves(runs: Sequence[Run], groups: Sequence[Group]) -> Figure:
    """train.loss and val.recall@K over epochs, a colour and marker for each run and a line style for each K; and means
    of the groups of which two or more runs are among these, in a band of one sample standard deviation.

    The first 80 runs are told apart and named, and eight K are drawn: of more those that most runs have.
    """
    figure = Figure(figsize=(11, 4.5 + 0.2 * min(len(runs), NUM_TOLD_APART)), layout="constrained")
    loss_panel, recall_panel = figure.subplots(1, 2)
    line_styles = dict(zip(_drawn_ks(runs), LINE_STYLES, strict=False))
    for i, run in enumerate(runs):
        style = _style(i)
        loss_panel.plot(*_columns(run.losses), color=style["color"], alpha=0.25, linewidth=0.7, zorder=FAINT)
        loss_panel.plot(*_columns(epoch_means(run.losses)), **style)
        for k, line_style in line_styles.items():
            points = _recalls(run, k)
            between_markers = 1 + len(points) // 10  # more of them would hide the line's style
            recall_panel.plot(*_columns(points), linestyle=line_style, markevery=between_markers, **style)
    handles, names = _named(runs)
    folders = [run.folder for run in runs]
    for number, group in enumerate(groups, 1):
        parts = [run for run in group.runs if run.folder in folders]
        if len(parts) < 2:
            continue
        color = _style(folders.index(parts[0].folder))["color"]
        _draw_mean(loss_panel, [epoch_means(run.losses) for run in parts], color, "-")
        for k, line_style in line_styles.items():
            _draw_mean(recall_panel, [_recalls(run, k) for run in parts], color, line_style)
        handles.append(Line2D([], [], color=color, linewidth=3))
        names.append(f"group {number}: mean of {len(parts)} seeds")
    loss_panel.set_rasterization_zorder(FAINT + 0.1)  # of each iteration: as paths they would take megabytes
    loss_panel.set(title="train.loss, and its mean over each epoch", xlabel="epoch", ylabel="loss")
    recall_panel.set(title="val.recall@K", xlabel="epochs trained", ylabel="recall [%]")
    for panel in (loss_panel, recall_panel):
        panel.grid(alpha=0.3)
    if line_styles:
        ks = [Line2D([], [], color="black", linestyle=line_style) for line_style in line_styles.values()]
        recall_panel.legend(ks, [f"R@{k}" for k in line_styles])
    figure.legend(handles, names, loc="outside lower center")
    return figure


def _named(runs: Sequence[Run]) -> tuple[list[Line2D], list[str]]:
    """Handles and names of a legend for the runs."""
    named = [shortened(printable(run.folder), LONGEST_NAME) for run in runs[:NUM_TOLD_APART]]
    names = [name.replace("$", r"\$") for name in named]  # a pair of $ would set a formula
    handles = [Line2D([], [], **_style(i)) for i in range(len(names))]
    if len(runs) > len(names):
        handles.append(Line2D([], [], linestyle=""))
        names.append(f"and {len(runs) - len(names)} more")
    return handles, names


def _draw_mean(panel: Axes, parts: Sequence[Points], color: str, line_style) -> None:
    """The mean at each x that all parts have, in a band of one sample standard deviation."""
    by_x = [dict(points) for points in parts]
    columns = {x: [values[x] for values in by_x] for x in by_x[0] if all(x in values for values in by_x)}
    means, deviations = map(fmean, columns.values()), map(stdev, columns.values())
    points = [(x, mean, deviation) for x, mean, deviation in zip(columns, means, deviations, strict=True)]
    panel.plot(*_columns([(x, mean) for x, mean, _ in points]), color=color, linestyle=line_style, linewidth=3)
    low, high = ([mean + sign * deviation for _, mean, deviation in points] for sign in (-1, 1))
    panel.fill_between(list(columns), low, high, color=color, alpha=0.15, linewidth=0)


def _recalls(run: Run, k: int) -> Points:
    return [(epoch, recalls[k]) for epoch, recalls in run.validations.items() if k in recalls]


def _style(number: int) -> dict:
    return {"color": f"C{number % 10}", "marker": MARKERS[number // 10 % len(MARKERS)], "markersize": 4}


def _drawn_ks(runs: Sequence[Run]) -> list[int]:
    """The K that are drawn, in order: as many as there are line styles, those that most runs have."""
    counts = Counter(k for run in runs for k in {k for recalls in run.validations.values() for k in recalls})
    return sorted(sorted(counts, key=lambda k: (-counts[k], k))[: len(LINE_STYLES)])


def epoch_means(losses: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """(middle of the epoch, mean loss) for each epoch, of (epoch as a fraction, loss) in order."""
    epochs = groupby(losses, key=lambda point: int(point[0]))
    return [(epoch + 0.5, fmean(loss for _, loss in points)) for epoch, points in epochs]


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]
