"""Photos read by a thread per core, with a limit on the pixels in memory."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.pool import ThreadPool
from pathlib import Path
from threading import Condition
from typing import TypeVar

from sop.images.photo import opened
from utils.errors import InputError
from utils.runtime.memory import release_freed_memory

T = TypeVar("T")
PIXELS_IN_FLIGHT = 200_000_000  # 16 photos of 12 megapixels, or 4 of 48; up to 8 bytes each: 1.6 GB
LARGE_PHOTO = 10_000_000  # pixels; after it freed memory is returned to the system: else each thread keeps its own


def usable_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_photos(paths: Sequence[Path], read: Callable[[Path], T]) -> Iterator[T | InputError]:
    """Apply `read` to each photo; yields the results, or the InputErrors raised, in order.

    There is a thread per core, as decoding releases the GIL. Photos being read have at most PIXELS_IN_FLIGHT pixels
    together; a larger photo is read alone.
    """
    budget = _Budget(PIXELS_IN_FLIGHT)

    def read_one(path: Path) -> T | InputError:
        try:
            with opened(path) as photo:  # the header alone
                pixels = photo.width * photo.height
            with budget.acquired(pixels):
                try:
                    return read(path)
                finally:
                    if pixels > LARGE_PHOTO:
                        release_freed_memory()
        except InputError as error:
            return error

    with ThreadPool(usable_cores()) as threads:
        yield from threads.imap(read_one, paths)


class _Budget:
    """A semaphore with amounts: threads wait until the amount that they acquire is free."""

    def __init__(self, size: int):
        self.size = self.free = size
        self.changed = Condition()

    @contextmanager
    def acquired(self, amount: int) -> Iterator[None]:
        amount = min(amount, self.size)
        with self.changed:
            self.changed.wait_for(lambda: amount <= self.free)
            self.free -= amount
        try:
            yield
        finally:
            with self.changed:
                self.free += amount
                self.changed.notify_all()
