"""Atomic writes: a file takes its name when it is complete."""

import errno
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from utils.errors import InputError

TEMPORARY = re.compile(r"\.[0-9a-f]{8}\..+\.part")
LEFTOVER_AGE = 24 * 60 * 60  # seconds


@contextmanager
def atomic_write(path: Path | str) -> Iterator[BinaryIO]:
    """A binary file that takes the name `path` when it has been written to the disk; its folder is created.

    If the block or a write fails, an earlier file of that name is kept, and the temporary file is deleted. Several
    processes may write the same file, each a temporary one; the last to finish wins. InputError if the operating system
    refuses, for instance on a full disk.
    """
    with atomic_write_all(path) as (file,):
        yield file


@contextmanager
def atomic_write_all(*paths: Path | str) -> Iterator[list[BinaryIO]]:
    """`atomic_write` of several files, which take their names when all are written."""
    targets = [Path(path) for path in paths]
    try:
        with ExitStack() as stack:
            for folder in {target.parent for target in targets}:
                folder.mkdir(parents=True, exist_ok=True)
            for target in targets:
                if target.is_dir():  # else it would fail after others have been renamed
                    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            files = [stack.enter_context(_temporary_file(target)) for target in targets]
            yield files
            for file in files:
                file.flush()
                os.fsync(file.fileno())
            for target, file in zip(targets, files, strict=True):
                Path(file.name).replace(target)
            for folder in {target.parent for target in targets}:
                _sync_folder(folder)
    except OSError as error:
        names = ", ".join(map(str, targets))
        raise InputError(
            f"{names} could not be written: {error.strerror or error}; what stood there is kept"
        ) from error


@contextmanager
def _temporary_file(target: Path) -> Iterator[BinaryIO]:
    """A new file beside `target`, deleted at the end unless it has been renamed."""
    remove_leftovers(target.parent)
    with target.with_name(f".{secrets.token_hex(4)}.{target.name}.part").open("x+b") as file:
        try:
            yield file
        finally:
            Path(file.name).unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files of killed processes in a folder: those not written to for a day."""
    with suppress(OSError):
        for leftover in folder.iterdir():
            if TEMPORARY.fullmatch(leftover.name):
                with suppress(OSError):
                    if time.time() - leftover.stat().st_mtime > LEFTOVER_AGE:
                        leftover.unlink()


def _sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, if the file system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
