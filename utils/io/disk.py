"""Files as they lie on the disk: opened, summed, checked, and whether there is room for more."""

import errno
import hashlib
import os
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from utils.errors import InputError


def open_regular_file(path: Path | str) -> BinaryIO:
    """A file of the disk opened to read bytes; OSError for anything else, such as a pipe that nobody writes to."""
    path = Path(path)
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is no file", str(path))
    return path.open("rb")


def md5(path: Path | str) -> str:
    """A file's MD5 sum in hexadecimal; InputError where it cannot be read."""
    try:
        with open_regular_file(path) as file:
            return hashlib.file_digest(file, "md5").hexdigest()  # type: ignore[arg-type]
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


def stamp(path: Path | str) -> tuple[int, int, int]:
    """What tells a file from what stood there before, without reading it: its size in bytes, and the times, in ns since
    1970, at which its content and the file itself changed. `mv` and copies that keep the first time set the second."""
    stat = Path(path).stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def check_stored_zip(file: BinaryIO, with_sums: bool = False) -> None:
    """Raise BadZipFile unless a zip file holds its members as they are: reading it then takes no more than its size.

    So torch and numpy write. `with_sums` also reads all of it, and notices where a bit was lost.
    """
    with zipfile.ZipFile(file) as content:
        members = content.infolist()
        is_stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
        if not is_stored or sum(member.file_size for member in members) > file.seek(0, os.SEEK_END):
            raise zipfile.BadZipFile("its content is packed, which it never is by itself")
        damaged = content.testzip() if with_sums else None
    if damaged:
        raise zipfile.BadZipFile(f"it is damaged in {damaged}")


def check_disk_space(folders: Mapping[Path, int], what: str) -> None:
    """Raise InputError unless the folders, or where they are to be made, have so many bytes free for `what`.

    Folders on one disk share its room.
    """
    disks: dict[int, tuple[list[str], int, int]] = {}  # folders, bytes needed and free
    for folder, size in folders.items():
        try:
            existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
            disk, free = existing.stat().st_dev, shutil.disk_usage(existing).free
        except OSError as error:
            raise InputError(f"{folder} cannot take {what}: {error.strerror}; choose another folder") from error
        names, needed, _ = disks.get(disk, ([], 0, 0))
        disks[disk] = [*names, str(folder)], needed + size, free
    for names, needed, free in disks.values():
        if free < needed:
            raise InputError(
                f"{what} in {' and '.join(names)} needs {needed / 1e9:.3g} GB, but {free / 1e9:.3g} GB are free: make "
                "room, or choose a folder on another disk"
            )
