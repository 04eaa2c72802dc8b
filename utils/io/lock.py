"""A lock that one process at a time holds, and that is free when the process is gone."""

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from utils.errors import InputError


@contextmanager
def exclusive_lock(lock: Path, what: str, advice: str) -> Iterator[None]:
    """Hold the lock file `lock` in the block; the system releases it when the process dies, however that comes.

    The file itself stays, except in a new folder that has nothing else. Raises InputError where another process holds
    it, with that process (a file beside it names it), `what` it writes and some `advice`, and where the operating
    system refuses.
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
            raise InputError(f"{what} is being written by {name or 'another process'}: {advice}") from None
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
