"""A tensor in a `.npy` file, one row per image: the layout of the file, and reading of rows."""

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

# numpy's; bfloat16 is stored as the uint16 of its bits
FORMATS = {torch.float32: "<f4", torch.float16: "<f2", torch.bfloat16: "<u2", torch.uint8: "|u1"}
ROWS_AT_ONCE = 1024  # in memory: 26 MB of maps of 128 x 7 x 7 in float32

Item = TypeVar("Item")
Made = TypeVar("Made")


class Layout(NamedTuple):
    """The file's layout of a tensor (n, ...)."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def header(self) -> bytes:
        content = io.BytesIO()
        header = {"descr": FORMATS[self.dtype], "fortran_order": False, "shape": self.shape}
        np.lib.format.write_array_header_1_0(content, header)
        return content.getvalue()

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    def offset(self, row: int) -> int:
        """The byte at which a row begins."""
        return len(self.header) + row * self.row_bytes


class StoredRows:
    """A tensor (n, ...) in a file, whose rows are read on demand; InputError if the file cannot be read.

    Rows are read and not mapped, since mapped pages count as memory of this process.
    """

    def __init__(self, path: Path, layout: Layout):
        self.path, self.layout, self.dtype = path, layout, layout.dtype
        with open_regular_file(path) as file:
            self._file = os.dup(file.fileno())  # of this file, even when another takes its name
        weakref.finalize(self, os.close, self._file)

    def __len__(self) -> int:
        return self.layout.shape[0]

    @property
    def nbytes(self) -> int:
        return len(self) * self.layout.row_bytes

    def empty_rows(self, rows: int, pinned: bool = False) -> Tensor:
        """An empty tensor for so many rows."""
        return torch.empty((rows, *self.layout.shape[1:]), dtype=self.dtype, pin_memory=pinned)

    def read(self, rows: np.ndarray, out: Tensor) -> Tensor:
        """Read rows, given by ascending position, into the first rows of `out`, and return these.

        Adjacent rows are read at once. The system is advised of all reads beforehand, so that the disk is never idle,
        which takes a third of the time.
        """
        content, row_bytes = bytes_of(out), self.layout.row_bytes
        bounds = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]
        offsets = (self.layout.offset(0) + rows[bounds[:-1]] * row_bytes).tolist()
        buffers = [content[start * row_bytes : end * row_bytes] for start, end in pairwise(bounds)]
        with suppress(AttributeError, OSError):  # not on every system
            for buffer, offset in zip(buffers, offsets, strict=True):
                os.posix_fadvise(self._file, offset, len(buffer), os.POSIX_FADV_WILLNEED)
        for buffer, offset in zip(buffers, offsets, strict=True):
            self._read_into(buffer, offset)
        return out[: len(rows)]

    def __getitem__(self, rows: slice) -> Tensor:
        start, stop, _ = rows.indices(len(self))
        return self.read(np.arange(start, stop), self.empty_rows(stop - start))

    def to(self, device: torch.device) -> Tensor:
        """All rows, on a device."""
        tensor = torch.empty(self.layout.shape, dtype=self.dtype, device=device)
        for start in range(0, len(self), ROWS_AT_ONCE):
            tensor[start : start + ROWS_AT_ONCE] = self[start : start + ROWS_AT_ONCE]
        return tensor

    def has_rows(self, rows: int) -> bool:
        """Whether the file has the layout's header and at least so many rows."""
        header = memoryview(bytearray(len(self.layout.header)))
        with suppress(InputError):
            self._read_into(header, 0)
        return header == self.layout.header and os.fstat(self._file).st_size >= self.layout.offset(rows)

    def _read_into(self, buffer: memoryview, offset: int) -> None:
        try:
            is_complete = os.preadv(self._file, [buffer], offset) == len(buffer)
        except OSError as error:
            raise InputError(f"{self.path} cannot be read ({error.strerror}): run the command again") from error
        if not is_complete:
            raise InputError(f"{self.path} has become shorter: run the command again")


def bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU, not copied."""
    return memoryview(tensor.view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]


def on_device_if_they_fit(rows: Tensor | StoredRows, device: torch.device) -> Tensor | StoredRows:
    """Move rows to the device, but to a GPU only if they take no more than half of its free memory."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free = torch.cuda.mem_get_info(device)[0] + unused
        return rows.to(device) if rows.nbytes <= free // 2 else rows
    return rows.to(device) if isinstance(rows, Tensor) else rows


def one_ahead(make: Callable[[Item], Made], items: Iterable[Item]) -> Iterator[Made]:
    """Yield `make(item)` for each item; a thread makes the next one while one is in use."""
    with ThreadPoolExecutor(1) as pool:
        pending = None
        for item in items:
            current, pending = pending, pool.submit(make, item)
            if current is not None:
                yield current.result()
        if pending is not None:
            yield pending.result()
