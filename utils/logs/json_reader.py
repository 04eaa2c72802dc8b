"""The text and JSON files of a run folder; an error where they are not what Sacred writes."""

import json
import math
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from utils.errors import InputError


def read_text(path: Path) -> str:
    """A file's text, empty where there is no file. InputError for what is no regular file."""
    if path.is_file():
        return path.read_text(encoding="utf-8", errors="replace")
    if os.path.lexists(path):  # opening a pipe would wait for its writer
        raise InputError(f"{path.name} is no regular file")
    return ""


def read_json(path: Path) -> dict:
    """A file's JSON object, empty where there is no file. InputError for anything else."""
    if not os.path.lexists(path):
        return {}
    text = read_text(path)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path.name} is no valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path.name} holds no JSON object")
    return content


def nested(node: object, *keys: str) -> object:
    """The value under nested keys, None where a key is missing."""
    for key in keys:
        node = node.get(key) if isinstance(node, dict) else None
    return node


def number(node: object) -> float:
    """A finite number, plain or as jsonpickle encodes a numpy one; ValueError for anything else."""
    value = node.get("value") if isinstance(node, dict) else node
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r:.50} is no finite number")
    return value


def time(entry: Mapping, name: str) -> datetime | None:
    """A time in run.json. Sacred writes UTC without a time zone."""
    return datetime.fromisoformat(entry[name]).replace(tzinfo=UTC) if entry.get(name) else None


def curve(metrics: Mapping, name: str) -> list[tuple[float, float]]:
    """(step, value) of a logged scalar, in order of the steps, without points that are not finite."""
    scalar = metrics.get(name, {"steps": [], "values": []})
    values = [node["value"] if isinstance(node, dict) else node for node in scalar["values"]]
    points = zip(scalar["steps"], values, strict=True)
    return sorted((step, value) for step, value in points if math.isfinite(step) and math.isfinite(value))
