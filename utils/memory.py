"""The memory of this process."""

import ctypes
import resource
import sys
from contextlib import suppress

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
LARGEST_KEPT = 32 << 20  # bytes; glibc allows no more


def keep_freed_memory() -> None:
    """Keep what tensors of up to 32 MiB leave, for those to come; else Linux takes it back and clears it anew.

    Without glibc, nothing changes.
    """
    with suppress(AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)
        libc.mallopt(M_TRIM_THRESHOLD, -1)


def peak_memory() -> int:
    """The most resident bytes that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
