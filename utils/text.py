"""Texts and tables as a terminal or Markdown shows them: made printable, measured in columns, shortened, sorted."""

import html
import math
import re
import unicodedata
from datetime import timedelta
from pathlib import Path

Row = dict[str, object]


def text_table(rows: list[Row]) -> str:
    """Columns aligned by blanks, numbers to the right; a column's name may have several lines."""
    names = [name.split("\n") for name in rows[0]]
    height = max(map(len, names))
    lines = [list(line) for line in zip(*([""] * (height - len(name)) + name for name in names), strict=True)]
    lines += [[cell_text(value) for value in row.values()] for row in rows]
    widths = [max(map(width, column)) for column in zip(*lines, strict=True)]
    left = [any(isinstance(row[name], str | Path) and "±" not in str(row[name]) for row in rows) for name in rows[0]]
    return "\n".join(
        "  ".join(
            cell + " " * (columns - width(cell)) if to_left else " " * (columns - width(cell)) + cell
            for cell, columns, to_left in zip(line, widths, left, strict=True)
        ).rstrip()
        for line in lines
    )


def markdown_table(rows: list[Row]) -> str:
    """A table in Markdown."""
    lines = [[markdown_text(name) for name in rows[0]], ["---"] * len(rows[0])]
    lines += [[markdown_text(cell_text(value)) for value in row.values()] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def markdown_text(text: str) -> str:
    """A text with what Markdown takes for HTML, for code or for the end of a cell escaped."""
    return re.sub(r"[\\`|]", r"\\\g<0>", html.escape(text, quote=False))


def cell_text(value: object) -> str:
    """A value as a table shows it, on one line."""
    if isinstance(value, timedelta):
        minutes, seconds = divmod(round(value.total_seconds()), 60)
        return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
    if isinstance(value, float):
        return f"{value:.2f}" if abs(value) < 1e9 else f"{value:g}"
    return "" if value is None else printable(" ".join(str(value).split()))


STEERING = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # Unicode's controls, formats, surrogates and separators of lines


def printable(text: object) -> str:
    """A text with its controls and lone surrogates escaped: they steer a terminal, or cannot be written at all."""
    text = str(text)
    if text.isprintable():
        return text
    return "".join(c.encode("unicode_escape").decode() if unicodedata.category(c) in STEERING else c for c in text)


def width(text: str) -> int:
    """The columns that a printable text takes in a terminal: two for a wide character, none for a combining one."""
    if text.isascii():
        return len(text)
    return sum(_character_width(c) for c in text)


def _character_width(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1


def shortened(text: str, columns: int) -> str:
    """A text in at most so many columns: what does not fit is taken from its middle, where … stands."""
    if width(text) <= columns:
        return text
    tail = (columns - 1) // 2
    return _beginning(text, columns - 1 - tail) + "…" + _beginning(text[::-1], tail)[::-1]


def _beginning(text: str, columns: int) -> str:
    """As many first characters as fit into so many columns."""
    for i, character in enumerate(text):
        columns -= _character_width(character)
        if columns < 0:
            return text[:i]
    return text


def natural_key(text: str) -> list:
    """A sort key under which numbers in a text go by their value, however many digits they have."""
    return [
        (len(part.lstrip("0")), part.lstrip("0")) if part.isdecimal() else (math.inf, part)
        for part in re.split(r"(\d+)", text)
    ]
