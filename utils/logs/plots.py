"""Loss and recall curves of runs."""

from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Literal

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from utils.errors import InputError, listing
from utils.io.atomic import atomic_write
from utils.logs.runs import Run
from utils.text import printable, shortened

MARKERS = (".", "s", "^", "x", "D", "v", "*", "P")  # one for each ten runs, as there are ten colours
NUM_TOLD_APART = 10 * len(MARKERS)
LINE_STYLES: tuple[Literal["-", "--", "-.", ":"] | tuple[float, tuple[int, ...]], ...] = (  # one for each K
    *("-", "--", "-.", ":"),
    *((0, (8, 3)), (0, (6, 1, 1, 1, 1, 1)), (0, (3, 5)), (0, (1, 4))),
)
LONGEST_NAME = 72  # columns: of the widest letters they are as wide as the figure


def plot_runs(runs: Sequence[Run], path: Path) -> None:
    """Draw train.loss and val.recall@K over epochs, a colour and marker for each run and a line style for each K.

    The first 80 runs are told apart and named, and eight K are drawn: of more those that most runs have.
    Raises InputError when no run has a curve, or when `path` has an ending that matplotlib does not know or cannot be
    written.
    """
    drawn = [run for run in runs if run.losses or len(run.validations) > 1]
    if not drawn:
        raise InputError(f"{path} was not drawn: none of the runs has logged train.loss or val.recall@K")
    figure = Figure(figsize=(11, 4.5 + 0.2 * min(len(drawn), NUM_TOLD_APART)), layout="constrained")
    kind = path.suffix.removeprefix(".").lower()
    if kind not in figure.canvas.get_supported_filetypes():
        raise InputError(f"{path} was not drawn: its ending must be one of {listing(('.png', '.pdf', '.svg'))}")

    loss_panel, recall_panel = figure.subplots(1, 2)
    line_styles = dict(zip(_drawn_ks(drawn), LINE_STYLES, strict=False))
    for i, run in enumerate(drawn):
        style = _style(i)
        loss_panel.plot(*_columns(run.losses), color=style["color"], alpha=0.25, linewidth=0.7)
        loss_panel.plot(*_columns(epoch_means(run.losses)), **style)
        for k, line_style in line_styles.items():
            points = [(epoch, recalls[k]) for epoch, recalls in run.validations.items() if k in recalls]
            between_markers = 1 + len(points) // 10  # more of them would hide the line's style
            recall_panel.plot(*_columns(points), linestyle=line_style, markevery=between_markers, **style)
    loss_panel.set(title="train.loss, and its mean over each epoch", xlabel="epoch", ylabel="loss")
    recall_panel.set(title="val.recall@K", xlabel="epochs trained", ylabel="recall [%]")
    for panel in (loss_panel, recall_panel):
        panel.grid(alpha=0.3)

    if line_styles:
        handles = [Line2D([], [], color="black", linestyle=line_style) for line_style in line_styles.values()]
        recall_panel.legend(handles, [f"R@{k}" for k in line_styles])
    named = [shortened(printable(run.folder), LONGEST_NAME) for run in drawn[:NUM_TOLD_APART]]
    names = [name.replace("$", r"\$") for name in named]  # a pair of $ would set a formula
    handles = [Line2D([], [], **_style(i)) for i in range(len(names))]
    if len(drawn) > len(names):
        handles.append(Line2D([], [], linestyle=""))
        names.append(f"and {len(drawn) - len(names)} more")
    figure.legend(handles, names, loc="outside lower center")
    with atomic_write(path) as file:
        figure.savefig(file, format=kind)


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
