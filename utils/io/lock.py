"""Locks that the system releases when their process dies."""

import fcntl
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from utils.errors import InputError

ORPHAN_TIMEOUT = 10  # seconds: workers of a loader look for their parent every five


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


def _lock_file(lock: Path) -> BinaryIO:
    """The file `lock`, locked. BlockingIOError where a process that lives has locked it; the workers of one that has
    died, which hold its files a little longer, are waited for."""
    end = time.monotonic() + ORPHAN_TIMEOUT
    while True:
        try:
            return open_locked(lambda: lock.open("a+b"))
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


def open_locked(open_file: Callable[[], BinaryIO]) -> BinaryIO:
    """The file that `open_file` opens, locked by this process. BlockingIOError where another has locked it.

    One that is deleted between opening and locking is opened again.
    """
    while True:
        file = open_file()
        if try_lock(file) is False:
            file.close()
            raise BlockingIOError(f"{file.name} is locked")
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()


def try_lock(file: BinaryIO) -> bool | None:
    """Lock an open file for this process: whether that succeeded, None where the file system knows no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except OSError:
        return None
