"""A lock file that one process at a time holds, until it releases it or dies."""

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from utils.errors import InputError


@contextmanager
def exclusive_lock(lock: Path, content: str, advice: str) -> Iterator[None]:
    """Hold the lock file `lock` in the block; the system releases it when the process dies.

    The file is kept, except in a folder that was created for it and is empty otherwise. InputError if another process
    holds the lock, with the process (named by a file beside it), the `content` that it writes, and `advice`; also if
    the operating system refuses.
    """
    holder = lock.with_name(f"{lock.name}.holder")
    with ExitStack() as stack:
        try:
            is_new = not lock.parent.exists()
            lock.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(lock, timeout=0))
            holder.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        except Timeout:
            name = ""
            with suppress(OSError):
                name = holder.read_text(encoding="utf-8", errors="replace")
            raise InputError(f"{content} is being written by {name or 'another process'}: {advice}") from None
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"{lock.parent} cannot be written to: {reason}; choose another folder") from error
        try:
            yield
        finally:
            with suppress(OSError):  # gone, or nothing can be written here any more
                holder.unlink()
                if is_new and [*lock.parent.iterdir()] == [lock]:  # nothing was written
                    lock.unlink()
                    lock.parent.rmdir()
