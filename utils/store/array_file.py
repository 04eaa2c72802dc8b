"""A tensor in a `.npy` file, a row for each image: where its rows lie, and how they come into memory."""

import io
import math
import os
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from utils.errors import InputError
from utils.io.disk import open_regular_file

# numpy's names; for bfloat16 that of its bits
FORMATS = {torch.float32: "<f4", torch.float16: "<f2", torch.bfloat16: "<u2", torch.uint8: "|u1"}
ROWS_AT_ONCE = 1024  # that pass through memory: of maps of 128 x 7 x 7 in float32, 26 MB

Item = TypeVar("Item")
Made = TypeVar("Made")


class Layout(NamedTuple):
    """Where the rows of a tensor (n, ...) lie in its file."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def header(self) -> bytes:
        content = io.BytesIO()
        described = {"descr": FORMATS[self.dtype], "fortran_order": False, "shape": self.shape}
        np.lib.format.write_array_header_1_0(content, described)
        return content.getvalue()

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    def place(self, row: int) -> int:
        """The byte at which a row begins."""
        return len(self.header) + row * self.row_bytes


class StoredRows:
    """A tensor (n, ...) in a file, whose rows come into memory when they are asked for.

    They are read and not mapped: pages that are mapped and touched count as memory of this process. InputError where
    the file cannot be read.
    """

    def __init__(self, path: Path, layout: Layout):
        self.path, self.layout, self.dtype = path, layout, layout.dtype
        with open_regular_file(path) as file:
            self._file = os.dup(file.fileno())  # stays this file, whatever takes its name
        weakref.finalize(self, os.close, self._file)

    def __len__(self) -> int:
        return self.layout.shape[0]

    @property
    def nbytes(self) -> int:
        return len(self) * self.layout.row_bytes

    def empty_rows(self, rows: int, pinned: bool = False) -> Tensor:
        """An empty tensor for so many rows."""
        return torch.empty((rows, *self.layout.shape[1:]), dtype=self.dtype, pin_memory=pinned)

    def read(self, rows: np.ndarray, room: Tensor) -> Tensor:
        """Rows, by rising position, into the first of `room`, which are returned; those side by side come at once.

        The system is told of all of them first, so that a disk is never idle: a third of the time.
        """
        content, row_bytes, begin = bytes_of(room), self.layout.row_bytes, self.layout.place(0)
        ends = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]
        places = (begin + rows[ends[:-1]] * row_bytes).tolist()
        parts = [content[first * row_bytes : end * row_bytes] for first, end in pairwise(ends)]
        with suppress(AttributeError, OSError):  # advice that not every system takes
            for part, place in zip(parts, places, strict=True):
                os.posix_fadvise(self._file, place, len(part), os.POSIX_FADV_WILLNEED)
        for part, place in zip(parts, places, strict=True):
            self._read_into(part, place)
        return room[: len(rows)]

    def __getitem__(self, rows: slice) -> Tensor:
        start, stop, _ = rows.indices(len(self))
        return self.read(np.arange(start, stop), self.empty_rows(stop - start))

    def to(self, device: torch.device) -> Tensor:
        """All rows, in a device's memory."""
        whole = torch.empty(self.layout.shape, dtype=self.dtype, device=device)
        for start in range(0, len(self), ROWS_AT_ONCE):
            whole[start : start + ROWS_AT_ONCE] = self[start : start + ROWS_AT_ONCE]
        return whole

    def has_rows(self, rows: int) -> bool:
        """Whether the file begins with the layout's header and is long enough for so many rows."""
        header = memoryview(bytearray(len(self.layout.header)))
        with suppress(InputError):
            self._read_into(header, 0)
        return header == self.layout.header and os.fstat(self._file).st_size >= self.layout.place(rows)

    def _read_into(self, room: memoryview, place: int) -> None:
        try:
            is_whole = os.preadv(self._file, [room], place) == len(room)
        except OSError as error:
            raise InputError(f"{self.path} cannot be read ({error.strerror}): run the command again") from error
        if not is_whole:
            raise InputError(f"{self.path} has become shorter: run the command again")


def bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU, in its own memory."""
    return memoryview(tensor.view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]


def on_device_if_they_fit(rows: Tensor | StoredRows, device: torch.device) -> Tensor | StoredRows:
    """Rows on the device where they take no more than half of a GPU's free memory, else where they are."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # torch's, but of no tensor
        free = torch.cuda.mem_get_info(device)[0] + kept
        return rows.to(device) if rows.nbytes <= free // 2 else rows
    return rows.to(device) if isinstance(rows, Tensor) else rows


def one_ahead(make: Callable[[Item], Made], items: Iterable[Item]) -> Iterator[Made]:
    """`make(item)` for each item in order; the next one is made in a thread while the one before is in use."""
    with ThreadPoolExecutor(1) as pool:
        following = None
        for item in items:
            made, following = following, pool.submit(make, item)
            if made is not None:
                yield made.result()
        if following is not None:
            yield following.result()
