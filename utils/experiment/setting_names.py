"""Which settings a command has: a table for `--help`, and the error for a name that is none of them."""

import difflib
import os
import textwrap
from collections.abc import Collection, Mapping

from sacred import Experiment, initialize
from sacred.arg_parser import _get_first_line_of_docstring as first_line
from sacred.config import ConfigScope
from sacred.initialize import Scaffold, create_scaffolding, gather_ingredients_topological
from sacred.utils import iterate_flattened, join_paths

from utils.errors import listing
from utils.experiment.run_folder import CommandError

WIDTH = 119  # of a line of the table, in characters


def settings_of(ex: Experiment) -> dict[str, tuple[object, str]]:
    """Default and comment of each setting of an experiment and its ingredients."""
    settings = {}
    scaffolding = create_scaffolding(ex, gather_ingredients_topological(ex))
    for path, part in scaffolding.items():
        part.gather_fallbacks()
        part.set_up_config()
        for name, default in part.config.items():
            settings[join_paths(path, name)] = default, part.config_mods.docs.get(name, "")
    return dict(sorted(settings.items(), key=lambda item: item[0].rpartition(".")[0]))  # the experiment's come first


def usage(ex: Experiment, program_name: str | None = None) -> tuple[str, str, str]:
    """Sacred's `get_usage`; the one that `--help` prints goes on with the settings and the named ones."""
    short, long, internal = Experiment.get_usage(ex, program_name)
    settings = settings_of(ex)
    width = max(map(len, settings), default=0)
    rows = {f"{name:{width}}  {default!r:18}": comment for name, (default, comment) in settings.items()}
    named = {name: first_line(config) for name, config in ex.gather_named_configs()}
    long += table("Settings, behind `with` as NAME=VALUE, with their defaults:", rows, width + 20)
    long += table("Named settings, behind `with` as NAME:", named, max(map(len, named), default=0))
    return short, long, internal


def table(title: str, rows: Mapping[str, str], width: int) -> str:
    """A title, and below it names, in a column of so many characters, and what they mean; nothing without names."""
    indent = " " * (width + 4)
    lines = [textwrap.fill(f"  {name:{width}}  {text}", WIDTH, subsequent_indent=indent) for name, text in rows.items()]
    return "\n".join(["", title, *lines, ""]) if rows else ""


def did_you_mean(name: str, known: Collection[str], otherwise: str) -> str:
    """The end of an error: the known name whose last part is most like that of `name`, if any is like it."""
    by_last_part = {other.rpartition(".")[2]: other for other in known}
    near = difflib.get_close_matches(name.rpartition(".")[2], by_last_part, 1)
    return f"did you mean {by_last_part[near[0]]}?" if near else otherwise


def check_settings_exist(scaffold: Scaffold) -> None:
    """CommandError for a setting that no part of an experiment has; the experiment's own scaffold looks at all.

    In place of Sacred's checks, which take what is an argument of any function, and warn of types that rules allow.
    """
    if scaffold.path:
        return
    parts = (scaffold, *scaffold.subrunners.values())
    given = {join_paths(part.path, name) for part in parts for name in part.config_mods.added}
    known = {join_paths(part.path, name) for part in parts for name, _ in iterate_flattened(part.config)} - given
    if given:
        name = min(given)
        raise CommandError(f"{name} is no setting: {did_you_mean(name, sorted(known), '--help lists all')}")


def find_named_config(name: str, scaffolding: Mapping[str, Scaffold]) -> tuple[Scaffold, str]:
    """Sacred's search for a named config or a file of settings; CommandError where there is none."""
    known = [join_paths(path, named) for path, part in scaffolding.items() for named in part.named_configs]
    if name not in known and not os.path.exists(name):  # noqa: PTH110  # pathlib's raises for a long name
        otherwise = f"choose from {listing(known)}" if known else "this command has none"
        raise CommandError(f"{name} is no named setting: {did_you_mean(name, known, otherwise)}")
    return find(name, scaffolding)


find = initialize.get_scaffolding_and_config_name
initialize.get_scaffolding_and_config_name = find_named_config
Scaffold._warn_about_suspicious_changes = check_settings_exist  # type: ignore[method-assign]
# a docstring says what a config is, and is no setting
evaluate = ConfigScope.__call__


def without_docstring(scope: ConfigScope, *args, **kwargs):
    summary = evaluate(scope, *args, **kwargs)
    summary.pop("__doc__", None)
    return summary


ConfigScope.__call__ = without_docstring  # type: ignore[assignment,method-assign]
