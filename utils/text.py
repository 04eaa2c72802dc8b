"""Texts and tables as a terminal or Markdown shows them: made printable, shortened, sorted."""

import html
import math
import re
import unicodedata
from datetime import timedelta
from pathlib import Path

Row = dict[str, object]


def text_table(rows: list[Row]) -> str:
    """Columns aligned by blanks, numbers to the right."""
    lines = [list(rows[0])] + [[cell_text(value) for value in row.values()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    left = [any(isinstance(row[name], str | Path) and "±" not in str(row[name]) for row in rows) for name in rows[0]]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if to_left else cell.rjust(width)
            for cell, width, to_left in zip(line, widths, left, strict=True)
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


def shortened(text: str, length: int) -> str:
    """A text of at most so many characters: what does not fit is taken from its middle, where … stands."""
    if len(text) <= length:
        return text
    tail = (length - 1) // 2
    return f"{text[: length - 1 - tail]}…{text[len(text) - tail :]}"


def natural_key(text: str) -> list:
    """A sort key under which numbers in a text go by their value, however many digits they have."""
    return [
        (len(part.lstrip("0")), part.lstrip("0")) if part.isdecimal() else (math.inf, part)
        for part in re.split(r"(\d+)", text)
    ]
