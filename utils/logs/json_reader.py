"""The files of a run folder, and what their JSON says; errors where it is not what Sacred writes."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import accumulate
from pathlib import Path

from utils.errors import InputError

LARGEST_FILE = 200_000_000  # bytes: a metrics.json of a million iterations, which takes seconds and 2 GB to parse
DEEPEST_CONFIG = 100  # levels: Sacred's have under ten, and Python's recursion ends at 1000
LAST_STEP = 1e9  # far beyond any training's epochs or iterations


def read_text(path: Path) -> str:
    """A file's text, empty where there is none. InputError for what is no regular file, or too large."""
    if not path.exists() and not path.is_symlink():
        return ""
    if not path.is_file():  # opening a pipe would wait for its writer
        raise InputError(f"{path.name} is no regular file")
    if path.stat().st_size > LARGEST_FILE:
        raise InputError(f"{path.name} is not read: it is larger than {LARGEST_FILE / 1e6:.0f} MB")
    return path.read_text(encoding="utf-8", errors="replace")


def read_json(path: Path) -> dict:
    """A file's JSON object, empty where there is no file. InputError for anything else."""
    text = read_text(path)
    if not text and not path.exists():
        return {}
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path.name} is {f'no valid JSON ({error})' if text.strip() else 'empty'}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path.name} holds no JSON object")
    return content


def read_config(path: Path) -> dict:
    """`read_json` of settings, which are walked level by level later."""
    config = read_json(path)
    if max(accumulate((c in "[{") - (c in "]}") for c in json.dumps(config))) > DEEPEST_CONFIG:
        raise InputError(f"{path.name} is nested more than {DEEPEST_CONFIG} levels deep")
    return config


def nested(node: object, *keys: str) -> object:
    """The value under nested keys, None where there is no such one."""
    for key in keys:
        node = node.get(key) if isinstance(node, dict) else None
    return node


def number(node: object, low: float, high: float) -> float:
    """A number from `low` to `high`, plain or as jsonpickle encodes a numpy one; ValueError for anything else."""
    value = node.get("value") if isinstance(node, dict) else node
    if not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"{value!r:.50} is no number from {low:g} to {high:g}")
    return value


def time(entry: Mapping, name: str) -> datetime | None:
    """A time in run.json as Sacred writes it: UTC, without saying so."""
    if entry.get(name) is None:
        return None
    written = datetime.fromisoformat(entry[name])
    return written.astimezone(UTC) if written.tzinfo else written.replace(tzinfo=UTC)


def curve(metrics: Mapping, name: str, low: float, high: float) -> list[tuple[float, float]]:
    """(step, value) of a logged scalar, in order of the steps; values out of range are left out, and so is NaN."""
    scalar = metrics.get(name, {"steps": [], "values": []})
    values = [node["value"] if isinstance(node, dict) else node for node in scalar["values"]]
    points = zip(scalar["steps"], values, strict=True)
    return sorted((step, value) for step, value in points if 0 <= step <= LAST_STEP and low <= value <= high)
