"""Thumbnails of photos, each once, as JPEGs in base64; or the reason why a photo cannot be read."""

import json
from pathlib import Path

from sop.images.photo import jpeg, thumbnail
from utils.errors import InputError
from utils.text import printable

SIDE = 96  # pixels of the longer side
QUALITY = 62


class Photos:
    """Thumbnails by index; `size` is their size in the page, in bytes."""

    def __init__(self) -> None:
        self.entries: list[dict[str, str]] = []
        self.index_of: dict[Path, int] = {}
        self.size = 0

    def index(self, folder: Path, name: str) -> int:
        """The index of a photo, by its path below a data set's folder. It is read at its first use."""
        path = folder / name
        if path not in self.index_of:
            self.index_of[path] = len(self.entries)
            self.entries.append(entry(path, name))
            self.size += len(json.dumps(self.entries[-1]))
        return self.index_of[path]


def entry(path: Path, name: str) -> dict[str, str]:
    """A photo's name as `path`, and its `jpeg` or the `problem` of reading it."""
    try:
        return {"path": printable(name), "jpeg": jpeg(thumbnail(path, SIDE), QUALITY)}
    except InputError as error:
        return {"path": printable(name), "problem": printable(error)}
