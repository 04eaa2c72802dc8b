"""Text tables that fit a terminal: what all rows share is said once, long texts are shortened, columns left out."""

import os
import re
import textwrap
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from utils.text import Row, cell_text, shortened, text_table, width

WIDTH = 100  # columns of a terminal
SHORTEST_TEXT = 24  # columns: rather than shorten texts further, whole columns of the table are left out
LONGEST_NAME = 60  # columns that the name of a row may keep where shorter ones would be equal

# left out first, of several the rightmost first; then all others from the right, but for the names of the rows
LEFT_OUT_FIRST = (
    "script",
    r"memory \(GB\)",
    "experiment",
    r"R@\d+ last",
    r"R@\d+( best)?",
    "mAP@R|R-precision|MRR",
    "dataset",
    "duration",
)


def fitted_table(rows: list[Row]) -> str:
    """A `text_table` of at most 100 columns; lines above it say what all rows share, and which columns are left out.

    Each measure is taken only where the table is still too wide.
    """
    remarks: list[str] = []
    for fit in (_without_empty, _shared_said_once, _with_stacked_names, _shortened):
        if max(map(width, text_table(rows).split("\n"))) > WIDTH:
            rows = fit(rows, remarks)
    above = "\n".join(shortened(remark, WIDTH) for remark in remarks)
    return f"{above}\n\n{text_table(rows)}" if remarks else text_table(rows)


def _without(rows: list[Row], names: Sequence[str]) -> list[Row]:
    return [{name: value for name, value in row.items() if name not in names} for row in rows]


def _without_empty(rows: list[Row], _remarks: list[str]) -> list[Row]:
    return _without(rows, [name for name in rows[0] if not any(cell_text(row[name]) for row in rows)])


def _shared_said_once(rows: list[Row], remarks: list[str]) -> list[Row]:
    """Texts that are equal in all rows, and the folder that all folders are in; a single row keeps its first text."""
    shared = [
        name
        for name, value in list(rows[0].items())[len(rows) == 1 :]
        if isinstance(value, str | Path) and not name.startswith("R@")
        if len({cell_text(row[name]) for row in rows}) == 1
    ]
    remarks += [f"{name}: {cell_text(rows[0][name])}" for name in shared]
    rows = _without(rows, shared)
    if "folder" in rows[0] and len(rows) > 1:
        folders = [Path(str(row["folder"])) for row in rows]
        with suppress(ValueError):  # no folder holds absolute and relative ones
            if parent := os.path.commonpath([folder.parent for folder in folders]):
                remarks.append(f"folders are below {cell_text(parent)}")
                rows = [row | {"folder": folder.relative_to(parent)} for row, folder in zip(rows, folders, strict=True)]
    return rows


def _with_stacked_names(rows: list[Row], _remarks: list[str]) -> list[Row]:
    """Names of columns with one word a line."""
    return [{name.replace(" ", "\n"): value for name, value in row.items()} for row in rows]


def _shortened(rows: list[Row], remarks: list[str]) -> list[Row]:
    """Texts at most so long that the table fits, columns left out where they would become too short."""
    cells = {name: [cell_text(row[name]) for row in rows] for name in rows[0]}
    widths = {name: max(map(width, [*name.split("\n"), *column])) for name, column in cells.items()}

    def columns(name: str, limit: int) -> int:
        return widths[name] if name.startswith("R@") else min(widths[name], limit)  # recalls are not shortened

    def fits(names: Sequence[str], limit: int) -> bool:
        return sum(columns(name, limit) for name in names) + len("  ") * (len(names) - 1) <= WIDTH

    names, left_out = list(cells), []
    shortest = _shortest_distinct(cells[names[0]])
    for name in _expendable(names):
        if not fits(names, shortest):
            names.remove(name)
            left_out.append(name.replace("\n", " "))
    if left_out:
        remarks += textwrap.wrap(f"left out, see --format markdown: {', '.join(left_out)}", WIDTH)
    limit = next((limit for limit in range(WIDTH, shortest, -1) if fits(names, limit)), shortest)
    return [
        {
            name: row[name] if width(cells[name][i]) <= columns(name, limit) else shortened(cells[name][i], limit)
            for name in names
        }
        for i, row in enumerate(rows)
    ]


def _shortest_distinct(texts: Sequence[str]) -> int:
    """To how many columns texts may be shortened without that different ones become equal."""
    lengths = range(SHORTEST_TEXT, LONGEST_NAME)
    num_texts = len(set(texts))
    return next((n for n in lengths if len({shortened(text, n) for text in texts}) == num_texts), LONGEST_NAME)


def _expendable(names: Sequence[str]) -> list[str]:
    """The order in which columns are left out, all but the first."""
    backwards = list(reversed(names[1:]))
    first = [name for pattern in LEFT_OUT_FIRST for name in backwards if re.fullmatch(pattern, name.replace("\n", " "))]
    return first + [name for name in backwards if name not in first]
