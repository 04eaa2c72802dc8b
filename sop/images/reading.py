"""Many photos read by several threads, as many at a time as their pixels allow."""

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
PIXELS_IN_FLIGHT = 200_000_000  # 16 photos of 12 megapixels, or 4 of 48; 8 bytes each while a photo is turned: 1.6 GB
LARGE = 10_000_000  # pixels of a photo after which freed memory is given back: else each thread keeps its own


def usable_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_photos(paths: Sequence[Path], read: Callable[[Path], T]) -> Iterator[T | InputError]:
    """What `read` returns for each photo, in their order, or the InputError that it raises.

    A thread for each core decodes, which lets others run. Photos in work have PIXELS_IN_FLIGHT pixels at most together;
    one with more is read alone.
    """
    budget = _Budget(PIXELS_IN_FLIGHT)

    def read_one(path: Path) -> T | InputError:
        try:
            with opened(path) as photo:  # the header alone
                pixels = photo.width * photo.height
            with budget.taken(pixels):
                try:
                    return read(path)
                finally:
                    if pixels > LARGE:
                        release_freed_memory()
        except InputError as error:
            return error

    with ThreadPool(usable_cores()) as threads:
        yield from threads.imap(read_one, paths)


class _Budget:
    """An amount, of which threads take what they need, and wait until there is as much."""

    def __init__(self, size: int):
        self.size = self.free = size
        self.changed = Condition()

    @contextmanager
    def taken(self, amount: int) -> Iterator[None]:
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
