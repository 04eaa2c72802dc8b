"""Files on the disk: opening, MD5 sums, zip checks, free space."""

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
    """Open a file to read bytes; OSError for anything but a regular file, such as a pipe."""
    path = Path(path)
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is no file", str(path))
    return path.open("rb")


def md5(path: Path | str) -> str:
    """A file's MD5 sum in hexadecimal; InputError if it cannot be read."""
    try:
        with open_regular_file(path) as file:
            return hashlib.file_digest(file, "md5").hexdigest()  # type: ignore[arg-type]
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


def stamp(path: Path | str) -> tuple[int, int, int]:
    """Size in bytes and times of change, in ns since 1970, by which a changed file is noticed without reading it.

    The times are those of content and of inode: `mv`, and copies that keep the first, set the second.
    """
    stat = Path(path).stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def check_stored_zip(file: BinaryIO, with_sums: bool = False) -> None:
    """Raise BadZipFile if members are compressed, as torch and numpy write none: reading takes no more than the size.

    `with_sums` also reads all members and checks their CRC-32.
    """
    with zipfile.ZipFile(file) as content:
        members = content.infolist()
        is_stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
        if not is_stored or sum(member.file_size for member in members) > file.seek(0, os.SEEK_END):
            raise zipfile.BadZipFile("its content is packed, which it never is by itself")
        damaged = content.testzip() if with_sums else None
    if damaged:
        raise zipfile.BadZipFile(f"it is damaged in {damaged}")


def check_disk_space(folders: Mapping[Path, int], content: str) -> None:
    """Raise InputError if the disks of the folders, which need not exist yet, have fewer bytes free for `content`.

    The sizes of folders on one disk are added.
    """
    disks: dict[int, tuple[list[str], int, int]] = {}  # folders, bytes needed and free
    for folder, size in folders.items():
        try:
            existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
            disk, free = existing.stat().st_dev, shutil.disk_usage(existing).free
        except OSError as error:
            raise InputError(f"{folder} cannot take {content}: {error.strerror}; choose another folder") from error
        names, needed, _ = disks.get(disk, ([], 0, 0))
        disks[disk] = [*names, str(folder)], needed + size, free
    for names, needed, free in disks.values():
        if free < needed:
            raise InputError(
                f"{content} in {' and '.join(names)} needs {needed / 1e9:.3g} GB, but {free / 1e9:.3g} GB are free: "
                "make room, or choose a folder on another disk"
            )
