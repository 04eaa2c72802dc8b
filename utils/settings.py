"""What the values of settings may be: rules, and one check that names a setting, its value and what is allowed."""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from utils.errors import InputError, listing


class Rule(NamedTuple):
    """What is allowed, in words, and whether a value is."""

    allowed: str
    accepts: Callable[[object], bool]

    def or_none(self) -> "Rule":
        """The rule that allows None too."""
        return Rule(f"{self.allowed}, or None", lambda value: value is None or self.accepts(value))


Rules = Mapping[str, Rule]


def whole_number(least: int, most: int | None = None, multiple: int = 1) -> Rule:
    """A whole number from `least` to `most`, a multiple of `multiple`."""
    kind = f"a multiple of {multiple}" if multiple > 1 else "a whole number"

    def accepts(value: object) -> bool:
        return type(value) is int and value >= least and (most is None or value <= most) and value % multiple == 0

    return Rule(f"{kind} from {least:,}" + ("" if most is None else f" to {most:,}"), accepts)


def number(least: float = 0, most: float = math.inf) -> Rule:
    """A finite number from `least` to `most`."""

    def accepts(value: object) -> bool:
        return type(value) in (int, float) and least <= value <= most and math.isfinite(value)  # type: ignore[operator,arg-type]

    return Rule(f"a number from {least:g}" + ("" if math.isinf(most) else f" to {most:g}"), accepts)


def one_of(*choices: object) -> Rule:
    """One of the choices."""
    return Rule(f"one of {listing(choices)}", lambda value: any(value is choice or (value == choice and type(value) is type(choice)) for choice in choices))


def list_of(rule: Rule, least: int = 1) -> Rule:
    """A list of values that `rule` allows, at least so many."""

    def accepts(value: object) -> bool:
        return isinstance(value, list | tuple) and len(value) >= least and all(map(rule.accepts, value))

    return Rule(f"a list of {least} or more, each {rule.allowed}", accepts)


def either(*rules: Rule) -> Rule:
    """What one of the rules allows."""
    return Rule(", or ".join(rule.allowed for rule in rules), lambda value: any(rule.accepts(value) for rule in rules))


TEXT = Rule("text", lambda value: isinstance(value, str) and bool(value))
FLAG = Rule("True or False", lambda value: isinstance(value, bool))


def check_settings(config: Mapping[str, object], rules: Rules, prefix: str = "") -> None:
    """Raise InputError for the first setting of `config` whose value its rule does not allow."""
    for name, rule in rules.items():
        if name in config and not rule.accepts(config[name]):
            raise InputError(f"{prefix}{name}={config[name]!r} cannot be used: give {rule.allowed}")
