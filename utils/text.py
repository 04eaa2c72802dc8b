"""Texts and tables for a terminal, Markdown and HTML: made printable, shortened, sorted, escaped."""

import base64
import hashlib
import html
import math
import re
import unicodedata
from datetime import timedelta
from pathlib import Path

Row = dict[str, object]


def text_table(rows: list[Row]) -> str:
    """Columns aligned by blanks: texts to the left, numbers and `mean ± deviation` to the right."""
    columns = []
    for name in rows[0]:
        cells = [name] + [cell_text(row[name]) for row in rows]
        is_text = any(isinstance(row[name], str | Path) and "±" not in str(row[name]) for row in rows)
        width = max(map(len, cells))
        columns.append([cell.ljust(width) if is_text else cell.rjust(width) for cell in cells])
    return "\n".join("  ".join(cells).rstrip() for cells in zip(*columns, strict=True))


def markdown_table(rows: list[Row]) -> str:
    """A table in Markdown."""
    lines = [[markdown_text(name) for name in rows[0]], ["---"] * len(rows[0])]
    lines += [[markdown_text(cell_text(value)) for value in row.values()] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def markdown_text(text: str) -> str:
    """A text with the characters escaped that begin HTML or code in Markdown, or end a cell."""
    return re.sub(r"[\\`|]", r"\\\g<0>", html.escape(text, quote=False))


def cell_text(value: object) -> str:
    """A value as the text of a table's cell, on one line."""
    if isinstance(value, timedelta):
        minutes, seconds = divmod(round(value.total_seconds()), 60)
        return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
    if isinstance(value, float):
        return f"{value:.2f}" if abs(value) < 1e9 else f"{value:g}"
    return "" if value is None else printable(" ".join(str(value).split()))


CONTROLS = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # Unicode's categories of controls, formats, surrogates, line separators


def printable(text: object) -> str:
    """A text with its control characters and lone surrogates escaped: they act on a terminal, or cannot be written."""
    text = str(text)
    if text.isprintable():
        return text
    return "".join(c.encode("unicode_escape").decode() if unicodedata.category(c) in CONTROLS else c for c in text)


def shortened(text: str, length: int) -> str:
    """A text of at most `length` characters: … replaces the middle of a longer one."""
    if len(text) <= length:
        return text
    tail = (length - 1) // 2
    return f"{text[: length - 1 - tail]}…{text[len(text) - tail :]}"


def natural_key(text: str) -> list:
    """A sort key that orders numbers in texts by their value, however many digits they have."""
    return [
        (len(part.lstrip("0")), part.lstrip("0")) if part.isdecimal() else (math.inf, part)
        for part in re.split(r"(\d+)", text)
    ]


def csp_source(content: str) -> str:
    """The name of an inline script or style in a page's Content-Security-Policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
