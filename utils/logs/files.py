"""The files of a run folder, read so that neither their kind nor their content stops the reader."""

import json
import stat
from functools import partial
from pathlib import Path

from utils.logs.characters import shortened

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
