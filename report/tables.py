"""The tables of `python -m utils.logs` for a page, each with the files that it is from."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utils.logs.groups import Group
from utils.logs.recalls import GAIN, interval_of
from utils.logs.runs import Run
from utils.logs.table import group_rows, ranking_rows, run_rows
from utils.text import Row, cell_text, shortened

LONGEST_TEXT = 200  # columns


def tables(runs: Sequence[Run], groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Rankings of evaluations, runs, and means over seeds, as far as there are such."""
    made = [
        (
            "Rankings of evaluations, in %",
            "From info.json in each row's folder (measures, gains). The change is in points, with its 95 % interval of "
            "a paired bootstrap over queries: one that does not reach 0 is not explained by the choice of queries.",
            ranking_rows(runs),
        ),
        (
            "Runs: best and last recalls, in %",
            "From run.json, config.json, info.json and metrics.json, or where it has no recalls cout.txt, in each "
            "row's folder. Epochs count those trained; runs of a group differ only in their seed.",
            run_rows(runs, groups),
        ),
        (
            "Means over seeds, in %",
            "Mean ± sample standard deviation of the runs above that have this number as their group.",
            group_rows(groups, lambda average, deviation: f"{average:.2f} ± {deviation:.2f}"),
        ),
    ]
    return [{"title": title, "source": source, **_table(rows)} for title, source, rows in made if rows]


def _table(rows: list[Row]) -> dict[str, Any]:
    """Columns that are not empty throughout; a cell is a text, and a change at R@1 also its interval."""
    columns = [name for name in rows[0] if any(cell_text(row[name]) for row in rows)]
    return {
        "columns": columns,
        "numeric": [
            name.startswith("R@") or not any(isinstance(row[name], str | Path) for row in rows) for name in columns
        ],
        "rows": [[shortened(cell_text(row[name]), LONGEST_TEXT) for name in columns] for row in rows],
        "intervals": [interval_of(str(row.get(GAIN) or "")) for row in rows],
    }
