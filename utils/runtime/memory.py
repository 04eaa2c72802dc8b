"""The memory of this process."""

import ctypes
import os
import sys
from contextlib import suppress
from pathlib import Path

from utils.errors import InputError
from utils.runtime.ranks import local_world_size

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
CONTROL_GROUP = Path("/sys/fs/cgroup")
MAX_MMAP_THRESHOLD = 32 << 20  # bytes; glibc allows no more


def keep_freed_memory() -> None:
    """Have malloc keep freed blocks of up to 32 MiB; Linux would take them back and clear their pages anew.

    Without glibc, nothing changes.
    """
    with suppress(AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, MAX_MMAP_THRESHOLD)
        libc.mallopt(M_TRIM_THRESHOLD, -1)


def release_freed_memory() -> None:
    """Return the memory that all threads have freed to the system. Without glibc, nothing happens."""
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def memory_limit() -> int:
    """The bytes of memory that this process may use: the machine's, or the limit of its control group."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for file in ("memory.max", "memory/memory.limit_in_bytes"):  # of control groups version 2 and 1
        with suppress(OSError, ValueError):  # no such file, or "max"
            limits.append(int((CONTROL_GROUP / file).read_text()))
    return min(limits)


def check_memory(size: int, content: str, advice: str) -> None:
    """Raise InputError if `size` bytes of `content`, in each rank on this machine, exceed `memory_limit`."""
    limit, ranks = memory_limit(), local_world_size()
    if size * ranks > limit:
        raise InputError(
            f"{content} take {size / 1e9:.3g} GB{f' in each of {ranks} ranks' * (ranks > 1)}, but there are "
            f"{limit / 1e9:.3g} GB of memory: {advice}"
        )


def peak_memory() -> int:
    """The peak of this process's resident memory, in bytes; on Linux and macOS."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
