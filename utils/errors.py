"""The errors that a command reports in one message."""

from collections.abc import Iterable, Mapping


class ReportedError(Exception):
    """Ends a command with its message alone: what, where, and what to do."""


class InputError(ReportedError, ValueError):
    """Something outside the program is not as it must be."""


class DeviceError(ReportedError, RuntimeError):
    """A GPU has failed; nothing more can be had from it."""


class DivergedError(ReportedError, ArithmeticError):
    """Training has left the finite numbers."""


def choose(table: Mapping, key, setting: str):
    """`table[key]`; InputError listing the keys when there is no such one."""
    if key not in table:
        raise InputError(f"{setting}={key!r} is unknown: choose from {listing(table)}")
    return table[key]


def listing(items: Iterable) -> str:
    """Items as text, separated by commas."""
    return ", ".join(map(repr, items))
