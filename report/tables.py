"""The tables of `python -m utils.logs` for a page, each with its sources."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utils.logs.groups import Group
from utils.logs.runs import Run
from utils.logs.table import group_rows, ranking_rows, run_rows
from utils.text import Row, cell_text, shortened

LONGEST_TEXT = 200  # characters


def tables(runs: Sequence[Run], groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Rankings of evaluations, runs, and means over seeds; empty tables are left out."""
    sections = [
        (
            "Rankings of evaluations, in %",
            "From info.json in each row's folder (measures, gains). The change is in points, with the 95 % interval of "
            "a paired bootstrap over classes: a change whose interval excludes 0 is not due to the choice of classes.",
            ranking_rows(runs),
        ),
        (
            "Runs: best and last recalls, in %",
            "From run.json, config.json, info.json, metrics.json and cout.txt in each row's folder; cout.txt completes "
            "the recalls of metrics.json. Epoch 0 is before training; runs of a group differ only in their seed.",
            run_rows(runs, groups),
        ),
        (
            "Means over seeds, in %",
            "Mean ± sample standard deviation of the runs of each group.",
            group_rows(groups, lambda average, deviation: f"{average:.2f} ± {deviation:.2f}"),
        ),
    ]
    return [{"title": title, "source": source, **_table(rows)} for title, source, rows in sections if rows]


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
