"""Photos as small JPEGs in base64, each once, and what keeps one from being shown."""

import json
from pathlib import Path

from sop.images.photo import jpeg, thumbnail
from utils.errors import InputError
from utils.text import printable

SIDE = 96  # pixels, of the longer side
QUALITY = 62


class Photos:
    """Thumbnails by number; `size` is what they take in the page, in bytes."""

    def __init__(self) -> None:
        self.entries: list[dict[str, str]] = []
        self.numbers: dict[Path, int] = {}
        self.size = 0

    def number(self, path: Path) -> int:
        """The number of a photo, which is read the first time."""
        if path not in self.numbers:
            self.numbers[path] = len(self.entries)
            self.entries.append(entry(path))
            self.size += len(json.dumps(self.entries[-1]))
        return self.numbers[path]


def entry(path: Path) -> dict[str, str]:
    """A photo's `path` and its `jpeg`, or the `problem` that it has."""
    try:
        return {"path": printable(path), "jpeg": jpeg(thumbnail(path, SIDE), QUALITY)}
    except InputError as error:
        return {"path": printable(path), "problem": printable(error)}
