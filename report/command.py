"""`python -m report RUN... --out FILE`: a page that shows what runs did."""

import argparse
import base64
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from report.document import document
from report.evaluated import SCRIPT
from report.gallery import gallery
from report.photos import Photos
from report.tables import tables
from utils.errors import InputError
from utils.io.atomic import atomic_write
from utils.logs.groups import Group, collect_runs, group_runs
from utils.logs.plots import curves, has_curves, save
from utils.logs.runs import Run
from utils.logs.table import unread_lines
from utils.runtime.output import unfailing_output
from utils.settings import expand_home
from utils.text import printable

LARGEST_PAGE = 20_000_000  # bytes
MAX_PHOTO_BYTES, MAX_ATTENTION_BYTES = 13_000_000, 5_000_000  # bytes
MOST_QUERIES, MOST_PAIRS = 200, 120
MOST_GALLERIES, MOST_CURVES = 10, 40


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code: 0 when a page is written."""
    with unfailing_output():
        return write_page(arguments)


def write_page(arguments: Sequence[str] | None) -> int:
    """Read the runs, write the page; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m report",
        description="One HTML file with the tables, curves, neighbours and attention of runs, to open in a browser.",
        epilog=f"It shows at most {MOST_QUERIES} queries, and takes at most {LARGEST_PAGE / 1e6:.0f} MB.",
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
        if len(page) > LARGEST_PAGE:
            raise InputError(f"{options.out} would take {len(page) / 1e6:.1f} MB: give fewer runs")
        with atomic_write(options.out) as file:
            file.write(page)
    except InputError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{printable(options.out)} shows {len(runs)} runs, in {len(page) / 1e6:.1f} MB: open it in a browser")
    return 0


def contents(runs: Sequence[Run]) -> dict[str, Any]:
    """What the page shows."""
    groups, photos = group_runs(runs), Photos()
    evaluations = [run for run in runs if run.script == SCRIPT]
    galleries, problems = [], list(unread_lines(runs))
    for run in evaluations[:MOST_GALLERIES]:
        share = min(len(evaluations), MOST_GALLERIES)
        try:
            galleries.append(
                gallery(
                    run,
                    photos,
                    num_queries=MOST_QUERIES // share,
                    num_pairs=MOST_PAIRS // share,
                    photo_room=MAX_PHOTO_BYTES // share,
                    attention_room=MAX_ATTENTION_BYTES // share,
                )
            )
        except InputError as error:
            problems.append(printable(f"{run.folder}: no gallery: {error}"))
    if not evaluations:
        problems.append(f"No gallery: none of the runs is an evaluation of reranking; {SCRIPT} makes one")
    if len(evaluations) > MOST_GALLERIES:
        problems.append(
            f"No gallery for {len(evaluations) - MOST_GALLERIES} evaluations after the first {MOST_GALLERIES}"
        )
    drawn = [run for run in runs if has_curves(run)]
    if len(drawn) > MOST_CURVES:
        problems.append(f"No curves for {len(drawn) - MOST_CURVES} runs after the first {MOST_CURVES} that have such")
    if not drawn:
        problems.append("No curves: none of the runs has logged train.loss or val.recall@K; trainings do")
    return {
        "folders": [printable(run.folder) for run in runs],
        "tables": tables(runs, groups),
        "curves": _svg(drawn[:MOST_CURVES], groups) if drawn else None,
        "galleries": galleries,
        "photos": photos.entries,
        "problems": problems,
    }


def _svg(runs: Sequence[Run], groups: Sequence[Group]) -> str:
    """The curves as SVG, in base64."""
    file = io.BytesIO()
    save(curves(runs, groups), file, "svg")
    return base64.b64encode(file.getvalue()).decode()
