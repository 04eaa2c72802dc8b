"""`python -m report RUN... --out FILE`: a page that shows what runs did."""

import argparse
import base64
import io
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from report.document import document
from report.evaluated import SCRIPT, working_path
from report.gallery import gallery
from report.photos import Photos
from report.reliability import reliability_diagram, reliability_points
from report.summary import status_lines, summary
from report.tables import tables
from utils.errors import InputError
from utils.io.atomic import atomic_write
from utils.logs.groups import Group, collect_runs, group_runs
from utils.logs.plots import curves, has_curves, save
from utils.logs.runs import Run
from utils.logs.table import problem_lines
from utils.runtime.output import unfailing_output
from utils.settings import expand_home
from utils.text import printable, shortened

MAX_PAGE_BYTES = 20_000_000
MAX_PHOTO_BYTES, MAX_ATTENTION_BYTES = 13_000_000, 5_000_000  # of all galleries
MAX_QUERIES, MAX_PAIRS = 200, 120
MAX_GALLERIES = 10


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code: 0 when a page is written."""
    with unfailing_output():
        return write_page(arguments)


def write_page(arguments: Sequence[str] | None) -> int:
    """Read the runs, write the page; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m report",
        description="One HTML file with the tables, curves, neighbours and attention of runs, to open in a browser.",
        epilog=f"It shows at most {MAX_QUERIES} queries, and takes at most {MAX_PAGE_BYTES / 1e6:.0f} MB.",
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="RUN", help="searched for run folders, to any depth")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the page, for instance report.html")
    options = argparse.Namespace(**expand_home(vars(parser.parse_args(arguments))))
    runs, problems = collect_runs(options.folders)
    for line in problems:
        print(line, file=sys.stderr)
    if all(run.status == "UNREADABLE" for run in runs):
        return 1
    try:
        page = document(contents(runs)).encode()
        if len(page) > MAX_PAGE_BYTES:
            raise InputError(f"{options.out} would take {len(page) / 1e6:.1f} MB: give fewer runs")
        with atomic_write(options.out) as file:
            file.write(page)
    except InputError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{printable(options.out)} shows {len(runs)} runs, in {len(page) / 1e6:.1f} MB: open it in a browser")
    return 0


def contents(runs: Sequence[Run]) -> dict[str, Any]:
    """The page's data."""
    runs = [replace(run, folder=working_path(run.folder)) for run in runs]
    groups, photos = group_runs(runs), Photos()
    evaluations = [run for run in runs if run.script == SCRIPT]
    galleries, problems = [], [*status_lines(runs), *problem_lines(runs)]
    num_galleries = min(len(evaluations), MAX_GALLERIES)
    for run in evaluations[:MAX_GALLERIES]:
        try:
            galleries.append(
                gallery(
                    run,
                    photos,
                    num_queries=MAX_QUERIES // num_galleries,
                    num_pairs=MAX_PAIRS // num_galleries,
                    max_photo_bytes=MAX_PHOTO_BYTES // num_galleries,
                    max_attention_bytes=MAX_ATTENTION_BYTES // num_galleries,
                )
            )
        except InputError as error:
            problems.append(printable(f"{run.folder}: no gallery: {error}"))
    if not evaluations:
        problems.append(f"No gallery: none of the runs is an evaluation of reranking; {SCRIPT} makes one")
    if len(evaluations) > MAX_GALLERIES:
        problems.append(
            f"No gallery for {len(evaluations) - MAX_GALLERIES} evaluations after the first {MAX_GALLERIES}"
        )
    judged = [(run, points) for run in evaluations if (points := reliability_points(run))]
    charts = _charts(runs, groups)
    if not charts:
        problems.append("No curves: none of the runs has logged train.loss or val.recall@K; trainings do")
    return {
        **summary(runs, [sum(gallery["counts"]["global"]) for gallery in galleries]),
        "folders": [printable(run.folder) for run in runs],
        "tables": tables(runs, groups),
        "curves": charts,
        "reliability": _svg(reliability_diagram(judged)) if judged else None,
        "galleries": galleries,
        "photos": photos.entries,
        "problems": problems,
    }


def _charts(runs: Sequence[Run], groups: Sequence[Group]) -> list[dict[str, str]]:
    """The curves of each kind of training: losses of different kinds do not compare."""
    by_kind: dict[str, list[Run]] = {}
    for run in filter(has_curves, runs):
        objective = run.config.get("objective")
        kind = f"{run.experiment}, objective={objective}" if objective else str(run.experiment)
        by_kind.setdefault(shortened(printable(kind), 200), []).append(run)
    return [{"title": kind, "svg": _svg(curves(of_kind, groups))} for kind, of_kind in by_kind.items()]


def _svg(figure: Figure) -> str:
    """A figure as SVG, in base64."""
    file = io.BytesIO()
    save(figure, file, "svg")
    return base64.b64encode(file.getvalue()).decode()
