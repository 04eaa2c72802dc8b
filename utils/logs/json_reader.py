"""The JSON files of a run folder, read so that neither their kind nor their content stops the reader."""

import json
import stat
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from utils.text import shortened

LARGEST_FILE = 200_000_000  # bytes: a metrics.json of a million iterations, which takes seconds and 2 GB to parse
DEEPEST_NESTING = 100  # levels of JSON: Sacred's files have under ten, and Python's recursion ends at 1000
LONGEST_INTEGER = 300  # digits: one of 309 can be too large for a float


class RunFiles:
    """The files of a run folder; `problems` has what could not be read of them as its keys, in order."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.problems: dict[str, None] = {}

    def note(self, problem: str) -> None:
        """Add a problem, once."""
        self.problems[shortened(problem, 200)] = None

    def text(self, name: str, needed: bool = False) -> str | None:
        """A regular file's text; None where there is none, which is a problem when it is `needed`."""
        path = self.folder / name
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for its writer
                self.note(f"{name} is no regular file")
            elif status.st_size > LARGEST_FILE:
                self.note(f"{name} is not read: it is larger than {LARGEST_FILE / 1e6:.0f} MB")
            else:
                return path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            if needed or path.is_symlink():
                self.note(f"{name} is missing")
        except OSError as error:
            self.note(f"{name}: {error.strerror or error}")
        return None

    def json(self, name: str, needed: bool = False) -> dict:
        """A file's JSON object, empty where it has none. Integers of more than 300 digits are taken for infinite."""
        text = self.text(name, needed)
        if text is None:
            return {}
        try:
            content = json.loads(text, parse_int=partial(self._integer, name))
            if _is_too_deep(content):
                raise RecursionError
        except RecursionError:
            self.note(f"{name} is nested more than {DEEPEST_NESTING} levels deep")
            return {}
        except ValueError as error:
            self.note(f"{name} is {f'no valid JSON ({error})' if text.strip() else 'empty'}")
            return {}
        if not isinstance(content, dict):
            self.note(f"{name} holds no JSON object")
            return {}
        return content

    def _integer(self, name: str, written: str) -> int | float:
        num_digits = len(written.removeprefix("-"))
        if num_digits <= LONGEST_INTEGER:
            return int(written)
        self.note(f"{name} has an integer of {num_digits} digits, which is taken for infinite")
        return float(written)


def _is_too_deep(content: object) -> bool:
    level = [content]
    for _ in range(DEEPEST_NESTING):
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, dict) else node if isinstance(node, list) else ())
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True


LAST_STEP = 1e9  # far beyond any training's epochs or iterations
DIGITS_OF_A_STEP = 9


def nested(node: object, *keys: str) -> object:
    """The value under nested keys, None where there is no such one."""
    for key in keys:
        node = node.get(key) if isinstance(node, dict) else None
    return node


def whole_number(digits: str) -> int | None:
    """The number that decimal digits spell, None where it is no K or epoch that a run could have."""
    return int(digits) if len(digits) <= DIGITS_OF_A_STEP else None


def number(node: object, low: float, high: float) -> float | None:
    """A number from `low` to `high`, plain or as jsonpickle encodes a numpy one; None for anything else."""
    value = nested(node, "value") if isinstance(node, dict) else node
    plain = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
    return value if plain else None  # type: ignore[return-value]


def noted_number(files: RunFiles, name: str, node: object, low: float, high: float) -> float | None:
    """`number`; one that is there but cannot be is noted as a problem."""
    value = number(node, low, high)
    if value is None and node is not None:
        files.note(f"{name} is no number from {low:g} to {high:g}")
    return value


def time(files: RunFiles, entry: dict, name: str) -> datetime | None:
    """A time in run.json as Sacred writes it: UTC, without saying so."""
    text = entry.get(name)
    try:
        if text is None:
            return None
        written = datetime.fromisoformat(text)
        return written.astimezone(UTC) if written.tzinfo else written.replace(tzinfo=UTC)
    except (TypeError, ValueError, OverflowError):  # the years end at 9999, also where a zone's hours lead beyond
        files.note(f"run.json: {name} is no time")
        return None


def curve(files: RunFiles, metrics: dict, name: str, low: float, high: float) -> list[tuple[float, float]]:
    """(step, value) of a logged scalar, in order of the steps; points that cannot be are left out and noted."""
    if name not in metrics:
        return []
    steps, values = nested(metrics, name, "steps"), nested(metrics, name, "values")
    if not isinstance(steps, list) or not isinstance(values, list):
        files.note(f"metrics.json: {name} has no steps and values")
        return []
    if len(steps) != len(values):
        files.note(f"metrics.json: {name} has {len(steps)} steps, but {len(values)} values")
    pairs = zip(steps, values, strict=False)
    points = [(number(step, 0, LAST_STEP), number(value, low, high)) for step, value in pairs]
    whole = sorted((step, value) for step, value in points if step is not None and value is not None)
    if len(whole) < len(points):
        files.note(
            f"metrics.json: {len(points) - len(whole)} of {len(points)} points of {name} are left out: they are no "
            "numbers, or out of range"
        )
    return whole
