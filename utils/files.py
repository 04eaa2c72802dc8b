"""Files that are whole or not there at all, and what one process at a time writes."""

import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import socket
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from utils.errors import InputError

ORPHAN_TIMEOUT = 10  # seconds: workers of a loader look for their parent every five
TEMPORARY = re.compile(r"\.[0-9a-f]{8}\..+\.part")


@contextmanager
def atomic_write(path: Path | str) -> Iterator[BinaryIO]:
    """A binary file that takes the name `path` once everything is written and on the disk; its folder is made.

    When the body or the writing fails, a file that stood there before stays as it was and nothing else is left behind.
    Any number of processes may write the same file: each has a temporary one of its own, and the last to end wins.
    Raises InputError when the operating system refuses, on a full disk for instance.
    """
    with atomic_write_all(path) as (file,):
        yield file


@contextmanager
def atomic_write_all(*paths: Path | str) -> Iterator[list[BinaryIO]]:
    """`atomic_write` of several files: they take their names when all are written, or none does."""
    targets = [Path(path) for path in paths]
    try:
        with ExitStack() as stack:
            for folder in {target.parent for target in targets}:
                folder.mkdir(parents=True, exist_ok=True)
            for target in targets:
                if target.is_dir():  # it could not be renamed to, when others have been
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
    """A new file beside `target`, locked, and deleted at the end unless it has been renamed."""
    remove_leftovers(target.parent)
    with _new_file(target) as file:
        try:
            yield file
        finally:
            Path(file.name).unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Delete a folder's temporary files, whatever their target, that no process has locked: theirs were killed."""
    with suppress(OSError):
        for leftover in folder.iterdir():
            if TEMPORARY.fullmatch(leftover.name):
                with suppress(OSError), leftover.open("rb") as file:
                    if _lock(file) is True:
                        leftover.unlink()


def _new_file(target: Path) -> BinaryIO:
    """A locked file beside `target`; again where another process has taken it for a leftover before it was locked."""
    while True:
        with suppress(BlockingIOError):
            return _locked_file(lambda: target.with_name(f".{secrets.token_hex(4)}.{target.name}.part").open("x+b"))


@contextmanager
def exclusive_lock(lock: Path, what: str, advice: str) -> Iterator[None]:
    """Hold the lock file `lock` in the block; the system releases it when the process dies, however that comes.

    Raises InputError where another process holds it, with that process, `what` it writes and some `advice`, and where
    the operating system refuses.
    """
    try:
        is_new = not lock.parent.exists()
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = _lock_file(lock)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
        file.flush()
    except BlockingIOError:
        holder = ""
        with suppress(OSError):
            holder = lock.read_text(errors="replace")
        raise InputError(f"{what} is being written by {holder or 'another process'}: {advice}") from None
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{lock.parent} cannot be written to: {reason}; choose another folder") from error
    with file:
        try:
            yield
        finally:
            with suppress(OSError):  # gone, or nothing can be written here any more
                lock.unlink()
            if is_new:
                with suppress(OSError):  # it holds what was written
                    lock.parent.rmdir()


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


def _lock_file(lock: Path) -> BinaryIO:
    """The file `lock`, locked. BlockingIOError where a process that lives has locked it; the workers of one that has
    died, which hold its files a little longer, are waited for."""
    end = time.monotonic() + ORPHAN_TIMEOUT
    while True:
        try:
            return _locked_file(lambda: lock.open("a+b"))
        except BlockingIOError:
            if time.monotonic() > end or not _holder_has_died(lock):
                raise
            time.sleep(0.1)


def _holder_has_died(lock: Path) -> bool:
    """Whether the process that a lock file names is one of this machine, and has ended."""
    with suppress(OSError):
        holder = re.fullmatch(r"process (\d+) on (.+)", lock.read_text(errors="replace"))
        if holder and holder[2] == socket.gethostname():
            try:
                os.kill(int(holder[1]), 0)
            except (ProcessLookupError, OverflowError):
                return True
    return False


def _locked_file(open_file: Callable[[], BinaryIO]) -> BinaryIO:
    """The file that `open_file` opens, locked by this process. BlockingIOError where another has locked it.

    One that is deleted between opening and locking is opened again.
    """
    while True:
        file = open_file()
        if _lock(file) is False:
            file.close()
            raise BlockingIOError(f"{file.name} is locked")
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()


def _lock(file: BinaryIO) -> bool | None:
    """Lock an open file for this process: whether that succeeded, None where the file system knows no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except OSError:
        return None


def _sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk; a file system that cannot is let be."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
