"""Texts as a terminal shows them: made printable, measured in columns, shortened, sorted."""

import math
import re
import unicodedata

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
