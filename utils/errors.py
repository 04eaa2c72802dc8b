"""The error that a command reports in one message."""

from collections.abc import Iterable, Mapping
from typing import TypeVar

Value = TypeVar("Value")


class InputError(ValueError):
    """Something outside the program is not as it must be: the message says what, where, and what to do."""


def choose(table: Mapping, key, setting: str):
    """`table[key]`; InputError listing the keys when there is no such one."""
    if key not in table:
        raise InputError(f"{setting}={key!r} is unknown: choose from {listing(table)}")
    return table[key]


def listing(items: Iterable) -> str:
    """Items as text, separated by commas."""
    return ", ".join(map(repr, items))
