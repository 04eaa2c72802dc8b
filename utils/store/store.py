"""A folder of tensors of images: `NAME.npy` for each (`utils.store.array_file`), and a `store.json` with

* `made_with`: the fingerprint of what the tensors were computed from, by name,
* `tensors`: dtype and shape (images, ...), by name,
* `rows`: the number of leading rows that have been written.

Rows are written in chunks. A chunk is on the disk before `store.json` is replaced, atomically, by one that counts it:
an interrupt costs one chunk. `numpy.load` refuses a file until its last chunk is written.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from utils.errors import InputError
from utils.io.atomic import atomic_write
from utils.io.disk import check_disk_space, open_regular_file
from utils.store.array_file import FORMATS, ROWS_AT_ONCE, Layout, StoredRows, bytes_of

CHUNK_BYTES = 64 << 20  # that a chunk has before its last batch, at most
DTYPES = {str(dtype): dtype for dtype in FORMATS}


class Store:
    """Tensors of `count` images in a folder; `dims` has their names and numbers of dimensions.

    `made_with` is the fingerprint, by name, of what they are computed from.
    """

    def __init__(self, folder: Path, dims: Mapping[str, int], count: int, made_with: Mapping[str, str]):
        self.folder, self.dims, self.count, self.made_with = folder, dims, count, dict(made_with)
        self.file = folder / "store.json"
        self.paths = {name: folder / f"{name}.npy" for name in dims}
        self.tensors: dict[str, StoredRows] = {}
        self.load()

    def load(self) -> None:
        """Read `store.json`; a damaged one counts as none."""
        self.stored_fingerprint: dict[str, str] = {}
        self.layouts: dict[str, Layout] = {}
        self.rows = 0
        with suppress(Exception):  # the rows are then made anew
            with open_regular_file(self.file) as file:
                content = json.load(file)
            layouts = {name: self._layout(name, *content["tensors"][name]) for name in self.dims}
            rows = int(content["rows"])
            if 0 <= rows <= self.count:
                self.stored_fingerprint, self.layouts, self.rows = dict(content["made_with"]), layouts, rows

    def _layout(self, name: str, dtype: str, shape: Sequence[int]) -> Layout:
        layout = Layout(DTYPES[dtype], tuple(map(int, shape)))
        if len(layout.shape) != self.dims[name] or layout.shape[0] != self.count:
            raise ValueError(f"{name} cannot be of the shape {shape}")
        return layout

    def changed(self) -> list[str]:
        """The names in the fingerprint whose values differ from the stored ones."""
        return [name for name, value in self.made_with.items() if self.stored_fingerprint.get(name) != value]

    def count_valid_rows(self, names: Iterable[str]) -> int:
        """The number of leading rows that all tensors `names` have; opens them in `self.tensors`.

        0 if the fingerprint differs, or a file is not the one that was written.
        """
        rows = 0 if self.changed() else self.rows
        for name in names if rows else ():
            try:
                self.tensors[name] = StoredRows(self.paths[name], self.layouts[name])
            except OSError:
                return 0
            if not self.tensors[name].has_rows(rows):
                return 0
        return rows

    def write(self, start: int, batches: Iterable[Iterable[Tensor]]) -> None:
        """Write the rows from `start` on, given as batches (B, ...) of each tensor; a chunk is some whole batches.

        InputError if the disk lacks space or a file cannot be written; complete chunks are kept.
        """
        self.stored_fingerprint, self.rows = self.made_with, start
        with ExitStack() as stack:
            files: list[IO[bytes]] = []
            rows: list[Sequence[Tensor]] = []
            for batch in map(tuple, batches):
                if not files:
                    files = self._open(start, batch, stack)
                rows.append(batch)
                end = start + sum(len(parts[0]) for parts in rows)
                size = sum(part.nbytes for parts in rows for part in parts)
                if end - start >= ROWS_AT_ONCE or size >= CHUNK_BYTES or end == self.count:
                    self._write_chunk(files, start, end, [torch.cat(parts) for parts in zip(*rows, strict=True)])
                    start, rows = end, []

    def _open(self, start: int, batch: Sequence[Tensor], stack: ExitStack) -> list[IO[bytes]]:
        """Open the files to write rows from `start` on; from 0 on new ones, so that open readers keep theirs."""
        shapes = [(self.count, *part.shape[1:]) for part in batch]
        layouts = {name: Layout(part.dtype, shape) for name, part, shape in zip(self.dims, batch, shapes, strict=True)}
        if start and layouts != self.layouts:
            raise InputError(f"{self.folder} holds tensors of other shapes: delete it")
        missing = sum(layout.offset(self.count) - layout.offset(start) for layout in layouts.values())
        check_disk_space({self.folder: missing}, f"what is kept of {self.count} images")
        self.layouts = layouts
        with self._writing():
            self.folder.mkdir(parents=True, exist_ok=True)
            if not start:
                for path in (self.file, *self.paths.values()):
                    path.unlink(missing_ok=True)
            mode = "r+b" if start else "xb"
            files: list[IO[bytes]] = [stack.enter_context(path.open(mode)) for path in self.paths.values()]
            for file, layout in zip(files, layouts.values(), strict=True):
                file.write(layout.header)
        return files

    def _write_chunk(self, files: Sequence[IO[bytes]], start: int, end: int, tensors: Sequence[Tensor]) -> None:
        """Write rows to the disk, then a `store.json` that counts them."""
        with self._writing():
            for layout, file, tensor in zip(self.layouts.values(), files, tensors, strict=True):
                file.seek(layout.offset(start))
                file.write(bytes_of(tensor.cpu().contiguous()))
                file.flush()
                os.fsync(file.fileno())
        self.rows = end
        content = {
            "made_with": self.made_with,
            "tensors": {name: [str(layout.dtype), layout.shape] for name, layout in self.layouts.items()},
            "rows": self.rows,
        }
        with atomic_write(self.file) as file:
            file.write(json.dumps(content).encode())

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Translate OSError to InputError."""
        try:
            yield
        except OSError as error:
            raise InputError(
                f"{self.folder} could not be written to: {error.strerror or error}; make room and run the command "
                "again, which goes on from the images that are kept"
            ) from error
