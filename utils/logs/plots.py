"""Loss and recall curves of runs."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Literal

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from utils.errors import InputError, listing
from utils.files import atomic_write
from utils.logs.characters import printable
from utils.logs.runs import Run

LINE_STYLES: tuple[Literal["-", "--", "-.", ":"], ...] = ("-", "--", "-.", ":")


def plot_runs(runs: Sequence[Run], path: Path) -> None:
    """Draw train.loss and val.recall@K over epochs, a colour for each run and a line style for each K.

    Raises InputError when no run has a curve, or when `path` has an ending that matplotlib does not know or cannot be
    written.
    """
    drawn = [run for run in runs if run.losses or len(run.validations) > 1]
    if not drawn:
        raise InputError(f"{path} was not drawn: none of the runs has logged train.loss or val.recall@K")
    figure = Figure(figsize=(11, 4.5 + 0.2 * len(drawn)), layout="constrained")
    kind = path.suffix.removeprefix(".").lower()
    if kind not in figure.canvas.get_supported_filetypes():
        raise InputError(f"{path} was not drawn: its ending must be one of {listing(('.png', '.pdf', '.svg'))}")

    loss_panel, recall_panel = figure.subplots(1, 2)
    ks = sorted({k for run in drawn for recalls in run.validations.values() for k in recalls})
    for i, run in enumerate(drawn):
        colour = f"C{i % 10}"
        loss_panel.plot(*_columns(run.losses), color=colour, alpha=0.25, linewidth=0.7)
        loss_panel.plot(*_columns(epoch_means(run.losses)), color=colour, marker=".")
        for j, k in enumerate(ks):
            points = [(epoch, recalls[k]) for epoch, recalls in run.validations.items() if k in recalls]
            marker = "." if len(points) == 1 else None
            recall_panel.plot(*_columns(points), color=colour, linestyle=LINE_STYLES[j % 4], marker=marker)
    loss_panel.set(title="train.loss, and its mean over each epoch", xlabel="epoch", ylabel="loss")
    recall_panel.set(title="val.recall@K", xlabel="epochs trained", ylabel="recall [%]")
    for panel in (loss_panel, recall_panel):
        panel.grid(alpha=0.3)

    if ks:
        styles = [Line2D([], [], color="black", linestyle=LINE_STYLES[j % 4]) for j in range(len(ks))]
        recall_panel.legend(styles, [f"R@{k}" for k in ks])
    colours = [Line2D([], [], color=f"C{i % 10}", marker=".") for i in range(len(drawn))]
    names = [printable(run.folder).replace("$", r"\$") for run in drawn]  # a pair of $ would set a formula
    figure.legend(colours, names, loc="outside lower center")
    with atomic_write(path) as file:
        figure.savefig(file, format=kind)


def epoch_means(losses: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """(middle of the epoch, mean loss) for each epoch, of (epoch as a fraction, loss) in order."""
    epochs = groupby(losses, key=lambda point: int(point[0]))
    return [(epoch + 0.5, fmean(loss for _, loss in points)) for epoch, points in epochs]


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]
