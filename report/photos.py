"""Photos as small JPEGs in base64, each once, and what keeps one from being shown."""

import base64
import io
import json
from pathlib import Path

from PIL import Image

from sop.photo import opened, to_rgb
from utils.errors import InputError
from utils.logs.characters import printable

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
            self.entries.append(thumbnail(path))
            self.size += len(json.dumps(self.entries[-1]))
        return self.numbers[path]


def thumbnail(path: Path) -> dict[str, str]:
    """A photo's `path` and its `jpeg`, or the `problem` that it has."""
    try:
        with opened(path) as photo:
            photo.draft("RGB", (2 * SIDE, 2 * SIDE))
            small = to_rgb(photo)
            small.thumbnail((SIDE, SIDE))
            return {"path": printable(path), "jpeg": jpeg(small)}
    except InputError as error:
        return {"path": printable(path), "problem": printable(error)}


def jpeg(image: Image.Image, quality: int = QUALITY) -> str:
    """An image as a JPEG in base64."""
    content = io.BytesIO()
    image.save(content, "JPEG", quality=quality)
    return base64.b64encode(content.getvalue()).decode()
