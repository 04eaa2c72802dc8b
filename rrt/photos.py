"""Which photos some folders, lists and files name."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NoReturn

from sop.lists import numbered_lines
from utils.errors import InputError

SUFFIXES = {".avif", ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
LIST = ".txt"


def find_photos(sources: Iterable[str | Path]) -> list[Path]:
    """The absolute paths of the photos of `sources`, sorted, each once.

    A source is a folder, searched to any depth by the names' endings; a list, NAME.txt, with a path in each line, below
    the list's folder unless it is absolute; or a photo. Links to folders are not followed. InputError where one is
    missing, where a folder cannot be read, and where there is no photo.
    """
    given = [Path(os.path.abspath(source)) for source in sources]  # noqa: PTH100  # links keep their names
    found = sorted({photo for source in given for photo in _photos_of(source)})
    if not found:
        raise InputError(
            f"no photos in {', '.join(map(str, given))}: give folders with {', '.join(sorted(SUFFIXES))}, photos, or a "
            f"list NAME{LIST} with a path in each line"
        )
    return found


def _photos_of(source: Path) -> Iterator[Path]:
    if os.path.isdir(source):  # noqa: PTH112  # Path's raises where a folder above it may not be searched
        for folder, _, names in os.walk(source, onerror=_refuse):
            yield from (Path(folder, name) for name in names if Path(name).suffix.lower() in SUFFIXES)
    elif source.suffix.lower() == LIST:
        lines = (line for _, line in numbered_lines(source, "give a list, a folder or a photo") if line.strip())
        yield from (Path(os.path.abspath(source.parent / line)) for line in lines)  # noqa: PTH100
    elif os.path.exists(source):  # noqa: PTH110
        yield source
    else:
        raise InputError(f"{source} does not exist: give a folder, a photo, or a list of photos")


def _refuse(error: OSError) -> NoReturn:
    """An index that left a folder out would forget its photos."""
    raise InputError(f"folder {error.filename} cannot be read ({error.strerror}): mend it, or give folders without it")
