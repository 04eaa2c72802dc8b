"""The photos in folders and lists."""

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

    A source is a photo, a folder that is searched to any depth, or a list, NAME.txt, with a path in each line, relative
    to the list's folder. In folders the ending decides what is a photo, but a JPEG may have none; hidden files and
    folders and links to folders are skipped. `left_out` counts the other files by their endings. InputError where a
    source is missing, where a folder cannot be read, and where there is no photo.
    """
    paths = [Path(os.path.abspath(source)) for source in sources]  # noqa: PTH100  # links keep their names
    others: dict[Path, str] = {}  # endings; a file of two sources counts once
    photos = {photo for path in paths for photo in _photos_of(path, others)}
    if not photos:
        raise InputError(
            f"no photos in {', '.join(map(str, paths))}: give folders with {', '.join(sorted(_endings()))}, photos, or "
            f"a list NAME{LIST} with a path in each line"
        )
    if left_out is not None:
        left_out.update(ending for path, ending in others.items() if path not in photos)
    return sorted(photos)


def is_hidden(name: str) -> bool:
    """Whether a file or a folder is hidden, or is a NAS's folder of thumbnails."""
    return name.startswith(".") or name == "@eaDir"


@cache
def _endings() -> set[str]:
    """The endings of the formats that are read."""
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
    """Photos of an unreadable folder must not look like deleted ones."""
    raise InputError(
        f"folder {error.filename} cannot be read ({error.strerror}): change its permissions, or give folders without it"
    )
