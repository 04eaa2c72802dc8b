"""What the values of settings may be: rules, and one check that names a setting, its value and what is allowed."""

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from utils.errors import InputError, listing

LARGEST = sys.float_info.max


class Rule(NamedTuple):
    """What is allowed, in words, and whether a value is."""

    allowed: str
    accepts: Callable[[object], bool]
    refusal: str = ": give"

    def or_none(self) -> "Rule":
        """The rule that allows None too."""
        return Rule(f"{self.allowed}, or None", lambda value: value is None or self.accepts(value), self.refusal)


Rules = dict[str, Rule]


def whole_number(least: int, most: int | None = None, multiple: int = 1) -> Rule:
    """A whole number from `least` to `most`, a multiple of `multiple`."""
    kind = f"a multiple of {multiple}" if multiple > 1 else "a whole number"

    def accepts(value: object) -> bool:
        return type(value) is int and value >= least and (most is None or value <= most) and value % multiple == 0

    return Rule(f"{kind} from {least:,}" + ("" if most is None else f" to {most:,}"), accepts)


def number(least: float, most: float | None = None) -> Rule:
    """A finite number from `least` to `most`."""

    def accepts(value: object) -> bool:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and least <= value <= (LARGEST if most is None else most)  # type: ignore[operator]

    return Rule(f"a number from {least:,}" + ("" if most is None else f" to {most:,}"), accepts)


def one_of(*choices: object) -> Rule:
    """One of some texts, or None where that is among them."""
    return Rule(
        listing(choices),
        lambda value: isinstance(value, str | None) and value in choices,
        " is unknown: choose from",
    )


def list_of(rule: Rule, least: int = 1) -> Rule:
    """A list of at least so many values that `rule` allows."""

    def accepts(value: object) -> bool:
        return isinstance(value, list | tuple) and len(value) >= least and all(map(rule.accepts, value))

    return Rule(f"a list of {'one or more' if least else 'none or more'}, each {rule.allowed}", accepts)


def either(*rules: Rule) -> Rule:
    """What one of the rules allows."""
    return Rule(", or ".join(rule.allowed for rule in rules), lambda value: any(rule.accepts(value) for rule in rules))


TEXT = Rule("a text", lambda value: isinstance(value, str) and bool(value) and "\0" not in value)
FLAG = Rule("True or False", lambda value: isinstance(value, bool))
SEED = whole_number(0, 2**32 - 1)  # numpy's limit


def plain(value: Any) -> Any:
    """A value, a scalar of numpy as the number of Python that it is: one that rules know, and JSON and checkpoints."""
    return value.item() if isinstance(value, np.generic) else value


def check_settings(config: Mapping[str, object], rules: Rules, prefix: str = "") -> None:
    """Raise InputError for the first setting of `config` whose value its rule does not allow."""
    for name, rule in rules.items():
        if not rule.accepts(config[name]):
            raise InputError(f"{prefix}{name}={config[name]!r}{rule.refusal} {rule.allowed}")


def expand_home(value: Any) -> Any:
    """A setting's value with the `~` that a path begins with expanded, as a shell does; also in lists and dictionaries.

    Values of settings that are no path do not begin with one.
    """
    if isinstance(value, dict):
        return {name: expand_home(one) for name, one in value.items()}
    if isinstance(value, list):
        return [expand_home(one) for one in value]
    if isinstance(value, str | Path) and str(value).startswith("~"):
        return type(value)(os.path.expanduser(value))  # noqa: PTH111  # pathlib's raises where there is no home
    return value
