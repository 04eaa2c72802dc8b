"""Which photos some folders, lists and files name."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NoReturn

from PIL import Image

from sop.images.photo import FORMATS
from sop.lists import numbered_lines
from utils.errors import InputError
from utils.io.disk import open_regular_file

LIST = ".txt"
JPEG_START = b"\xff\xd8\xff"


def find_photos(sources: Iterable[str | Path], left_out: Counter[str] | None = None) -> list[Path]:
    """The absolute paths of the photos of `sources`, sorted, each once.

    A source is a folder, searched to any depth for the endings of photos and for JPEGs without one; a list, NAME.txt,
    with a path in each line, below the list's folder unless it is absolute; or a photo. In a folder hidden files and
    folders are passed over, and links to folders. `left_out` counts its other files by their endings. InputError where
    a source is missing, where a folder cannot be read, and where there is no photo.
    """
    given = [Path(os.path.abspath(source)) for source in sources]  # noqa: PTH100  # links keep their names
    others: dict[Path, str] = {}  # endings; a file of two sources counts once
    found = {photo for source in given for photo in _photos_of(source, others)}
    if not found:
        raise InputError(
            f"no photos in {', '.join(map(str, given))}: give folders with {', '.join(sorted(_endings()))}, photos, or "
            f"a list NAME{LIST} with a path in each line"
        )
    if left_out is not None:
        left_out.update(ending for path, ending in others.items() if path not in found)
    return sorted(found)


def is_hidden(name: str) -> bool:
    """Whether a file or a folder is the system's: hidden, or the small copies that a NAS keeps beside photos."""
    return name.startswith(".") or name == "@eaDir"


@cache
def _endings() -> set[str]:
    """Those of the formats that are read."""
    return {ending for ending, name in Image.registered_extensions().items() if name in FORMATS}


def _photos_of(source: Path, others: dict[Path, str]) -> Iterator[Path]:
    if os.path.isdir(source):  # noqa: PTH112  # Path's raises where a folder above it may not be searched
        for folder, folders, names in os.walk(source, onerror=_refuse):
            folders[:] = (name for name in folders if not is_hidden(name))
            for path in (Path(folder, name) for name in names if not is_hidden(name)):
                ending = path.suffix.lower()
                if ending in _endings() or (not ending and _is_jpeg(path)):
                    yield path
                else:
                    others[path] = ending
    elif source.suffix.lower() == LIST:
        lines = (line for _, line in numbered_lines(source, "give a list, a folder or a photo") if line.strip())
        yield from (Path(os.path.abspath(source.parent / line)) for line in lines)  # noqa: PTH100
    elif os.path.exists(source):  # noqa: PTH110
        yield source
    else:
        raise InputError(f"{source} does not exist: give a folder, a photo, or a list of photos")


def _is_jpeg(path: Path) -> bool:
    try:
        with open_regular_file(path) as file:
            return file.read(len(JPEG_START)) == JPEG_START
    except OSError:
        return False


def _refuse(error: OSError) -> NoReturn:
    """Photos of a folder that was left out would look like deleted ones."""
    raise InputError(f"folder {error.filename} cannot be read ({error.strerror}): mend it, or give folders without it")
