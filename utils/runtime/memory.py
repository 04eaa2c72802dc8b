"""The memory of this process."""

import ctypes
import os
import resource
import sys
from contextlib import suppress
from pathlib import Path

from utils.errors import InputError
from utils.runtime.ranks import local_world_size

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
CONTROL_GROUP = Path("/sys/fs/cgroup")
LARGEST_KEPT = 32 << 20  # bytes; glibc allows no more


def keep_freed_memory() -> None:
    """Keep what tensors of up to 32 MiB leave, for those to come; else Linux takes it back and clears it anew.

    Without glibc, nothing changes.
    """
    with suppress(AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)
        libc.mallopt(M_TRIM_THRESHOLD, -1)


def release_freed_memory() -> None:
    """Give what all threads have freed back to the system. Without glibc, nothing happens."""
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def memory_limit() -> int:
    """The bytes of memory that this process may hold: the machine's, or fewer where its control group has a limit."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for file in ("memory.max", "memory/memory.limit_in_bytes"):  # of control groups version 2 and 1
        with suppress(OSError, ValueError):  # none, or "max"
            limits.append(int((CONTROL_GROUP / file).read_text()))
    return min(limits)


def check_memory(size: int, what: str, advice: str) -> None:
    """Raise InputError where `what`, in each process of the job on this machine, takes more bytes than there are."""
    limit, processes = memory_limit(), local_world_size()
    if size * processes > limit:
        raise InputError(
            f"{what} take {size / 1e9:.3g} GB{f' in each of {processes} processes' * (processes > 1)}, but there are "
            f"{limit / 1e9:.3g} GB of memory: {advice}"
        )


def peak_memory() -> int:
    """The most resident bytes that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
