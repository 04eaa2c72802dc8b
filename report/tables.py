"""The tables of `python -m utils.logs` and one of fitted weights for a page, each with its sources."""

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from report.summary import with_untouched_weights
from utils.errors import InputError
from utils.io.ranking_names import FITTED, TITLES
from utils.logs.groups import Group
from utils.logs.json_reader import nested, read_json, read_text
from utils.logs.runs import Run
from utils.logs.table import group_rows, ranking_rows, run_rows
from utils.retrieval.fitted import FittedWeights
from utils.text import Row, cell_text, shortened

LONGEST_TEXT = 200  # characters
CROSSFITTED = re.compile(
    rf"^({'|'.join(re.escape(TITLES[name]) for name in FITTED)}): weights chosen on the other classes: (.*)$",
    re.MULTILINE,
)


def tables(runs: Sequence[Run], groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Rankings of evaluations, runs, means over seeds, and fitted weights; empty tables are left out."""
    untouched = with_untouched_weights(runs)

    def marked(rows: list[Row]) -> list[Row]:
        marks = ("untouched" if row["folder"] in untouched else None for row in rows)
        return [{"folder": row["folder"], "weights": mark} | row for row, mark in zip(rows, marks, strict=True)]

    sections = [
        (
            "Rankings of evaluations, in %",
            "From info.json in each row's folder (measures, gains). The change is in points, with the 95 % interval of "
            "a paired bootstrap over classes: a change whose interval excludes 0 is not due to the choice of classes. "
            "Untouched weights are those that a training started from.",
            marked(ranking_rows(runs)),
        ),
        (
            "Runs: best and last recalls, in %",
            "From run.json, config.json, info.json, metrics.json and cout.txt in each row's folder; cout.txt completes "
            "the recalls of metrics.json. Epoch 0 is before training: where it is the best, the checkpoint has the "
            "untouched weights of the start. Runs of a group differ only in their seed.",
            marked(run_rows(runs, groups)),
        ),
        (
            "Means over seeds, in %",
            "Mean ± sample standard deviation of the runs of each group.",
            group_rows(groups, lambda average, deviation: f"{average:.2f} ± {deviation:.2f}"),
        ),
        (
            "Fitted weights",
            "From info.json (fusion) of trainings and evaluations, with the change that cross-fitted weights make on "
            "the photos they were fitted on; and from cout.txt of evaluations, whose sums are weighted anew for each "
            "part of the classes.",
            [row for run in runs for row in _fitted_rows(run)],
        ),
    ]
    return [{"title": title, "source": source, **_table(rows)} for title, source, rows in sections if rows]


def _fitted_rows(run: Run) -> list[Row]:
    """The weights of a run's rankings, and what they were fitted on."""
    if run.status == "UNREADABLE":
        return []
    info = run.folder / "info.json"
    rows: list[tuple[object, ...]] = []
    with suppress(InputError):  # of a damaged record
        if own := FittedWeights.of_file(nested(read_json(info), "fusion"), info):
            fitted_on = f"{own.fitted_on}: {own.num_queries:,} photos of {own.num_classes:,} classes"
            gains = ["{:+.2f} ({:+.2f} to {:+.2f})".format(*gain) for gain in (own.recall_gain, own.precision_gain)]
            rows.append(("own", own.weights, fitted_on, *gains))
    lists = nested(run.config, "dataset", "test_file")
    for title, by_fold in CROSSFITTED.findall(read_text(run.folder / "cout.txt")):
        weights = "; ".join(dict.fromkeys(by_fold.split("; ")))
        rows.append((title.removesuffix(" (crossfit)"), weights, f"the other classes of {lists}", None, None))
    columns = ("ranking", "weights", "fitted on", "R@1 over global", "mAP@R over global")
    return [{"folder": run.folder, **dict(zip(columns, row, strict=True))} for row in rows]


def _table(rows: list[Row]) -> dict[str, Any]:
    """The columns that are not empty, and all cells as texts."""
    columns = [name for name in rows[0] if any(cell_text(row[name]) for row in rows)]
    return {
        "columns": columns,
        "numeric": [
            name.startswith("R@") or not any(isinstance(row[name], str | Path) for row in rows) for name in columns
        ],
        "rows": [[shortened(cell_text(row[name]), LONGEST_TEXT) for name in columns] for row in rows],
    }
