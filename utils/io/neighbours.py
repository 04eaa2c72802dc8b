"""Neighbour files: one pickled numpy array each, read by a restricted unpickler.

Files are written in pickle protocol 3 with numpy 1's names: every Python since 3.6 can read them, with any numpy.
"""

import csv
import pickle
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO

import numpy as np

from utils.errors import InputError
from utils.io.atomic import atomic_write, atomic_write_all
from utils.io.disk import open_regular_file

INDS, PER_QUERY = "nn_inds.pkl", "per_query.csv"  # of an evaluation: neighbours, and a table of their queries
MAX_SELF_MATCHES = 0.01  # of a file's queries


class _DType:
    """Stands in for numpy's dtype, whose flags a file could set: a plain number type and its byte order."""

    def __init__(self, code: str, *flags):
        self.dtype = np.dtype(code)
        if self.dtype.kind not in "biuf":
            raise pickle.UnpicklingError(f"an array of {self.dtype} instead of numbers")

    def __setstate__(self, state: tuple):
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Stands in for numpy's ndarray: it is made of the pickled bytes."""

    array: np.ndarray

    @classmethod
    def rebuild(cls, *skeleton) -> "_Array":
        """`_reconstruct` of pickle protocols 2 to 4; the content follows as state."""
        return cls()

    @classmethod
    def from_buffer(cls, buffer, dtype: _DType, shape: tuple, order: str) -> "_Array":
        """`_frombuffer` of pickle protocol 5."""
        self = cls()
        self.array = np.frombuffer(buffer, dtype.dtype).reshape(shape, order=order)  # type: ignore[call-overload]
        return self

    def __setstate__(self, state: tuple):
        _, shape, dtype, fortran_order, content = state
        self.array = np.frombuffer(content, dtype.dtype).reshape(shape, order="F" if fortran_order else "C")


def _bytes(text: str = "", encoding: str = "latin1") -> bytes:
    """Stands in for `_codecs.encode` and for an empty `bytes()`, as which pickle protocols 0 to 2 write bytes."""
    return text.encode(encoding)


NAMES: dict[tuple[str, str], Callable] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _DType,
    ("_codecs", "encode"): _bytes,
    ("builtins", "bytes"): _bytes,
    ("__builtin__", "bytes"): _bytes,
}
for _core in ("numpy.core", "numpy._core"):  # numpy 1's and 2's
    NAMES[f"{_core}.multiarray", "_reconstruct"] = _Array.rebuild
    NAMES[f"{_core}.numeric", "_frombuffer"] = _Array.from_buffer


class _ArrayUnpickler(pickle.Unpickler):
    """Resolves the names in a pickled array, and no others."""

    def find_class(self, module: str, name: str):
        if (module, name) not in NAMES:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return NAMES[module, name]


def pickle_load(path: Path | str) -> np.ndarray:
    """Read a pickled numpy array of numbers; InputError for anything else, without running code in it."""
    path = Path(path)
    try:
        with open_regular_file(path) as file:
            loaded = _ArrayUnpickler(file).load()
        if not isinstance(loaded, _Array):
            raise pickle.UnpicklingError(f"it holds a {type(loaded).__name__}")
        return loaded.array.copy()
    except OSError as error:
        raise InputError(f"{path} could not be read: {error.strerror}") from error
    except Exception as error:  # a hostile or damaged pickle can raise anything
        raise InputError(
            f"{path} is not a pickled numpy array of numbers ({error}): it was refused and nothing in it was run"
        ) from error


def pickle_save(path: Path | str, data) -> None:
    """Pickle an array of numbers into a file, atomically."""
    array = np.asarray(data)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"only arrays of numbers are pickled, not {array.dtype}")
    with atomic_write(path) as file:
        _dump(array, file)


def _dump(array: np.ndarray, file: BinaryIO) -> None:
    """Pickle an array of numbers into a file, with numpy 1's names."""

    def write(chunk) -> None:
        """Rename the array's constructor, which comes first in the file."""
        if file.tell() == 0:
            file.write(bytes(chunk[:100]).replace(b"numpy._core.multiarray", b"numpy.core.multiarray", 1))
            chunk = chunk[100:]
        file.write(chunk)

    pickle.Pickler(SimpleNamespace(write=write), protocol=3).dump(array)  # type: ignore[arg-type]


def load_neighbours(
    path: Path | str,
    num_queries: int,
    num_gallery: int,
    other_sets: dict[str, int] | None = None,
    is_self_search: bool = False,
    paths: Sequence[str] | None = None,
) -> np.ndarray:
    """A neighbour file: int64 (num_queries, K), positions in a gallery of `num_gallery` images, nearest first.

    `other_sets` has the sizes of other image sets, by name, to recognise a file made for one of them. InputError for a
    wrong dtype, shape, number of rows or range, for a table beside the file that lists other queries than `paths`, and,
    in a self-search, for more than `MAX_SELF_MATCHES` of the queries among their own neighbours. Fewer are reported:
    the published files have some, where photos are identical.
    """
    neighbours = pickle_load(path)
    if neighbours.dtype.kind not in "iu":
        raise InputError(
            f"neighbour file {path} holds {neighbours.dtype} numbers, expected integers: is it nn_dists.pkl?"
        )
    if neighbours.ndim != 2 or not neighbours.shape[1]:
        raise InputError(
            f"neighbour file {path} has shape {neighbours.shape}, expected ({num_queries}, K): a row per query"
        )
    if len(neighbours) != num_queries:
        match = [name for name, size in (other_sets or {}).items() if size == len(neighbours)]
        hint = (
            f"it has as many as the {match[0]} images: was it made for those?"
            if match
            else "make it anew with eval_global.py"
        )
        raise InputError(
            f"neighbour file {path} has {len(neighbours)} rows, expected {num_queries}, one per query; {hint}"
        )
    low, high = (int(neighbours.min()), int(neighbours.max())) if neighbours.size else (0, 0)
    if low < 0 or high >= num_gallery:
        row = int(((neighbours < 0) | (neighbours >= num_gallery)).any(axis=1).argmax())
        raise InputError(
            f"neighbour file {path} holds positions from {low} to {high} (first out of range in row {row}), expected "
            f"0 to {num_gallery - 1}, positions in the gallery: make it anew with eval_global.py"
        )
    if paths is not None:
        _check_queries(Path(path), paths)
    if is_self_search:
        _check_self_matches(path, neighbours)
    return neighbours.astype(np.int64, copy=False)


def _check_queries(path: Path, paths: Sequence[str]) -> None:
    """InputError if an evaluation's table beside its neighbour file lists other queries than `paths`.

    A table that is missing or cannot be read is ignored.
    """
    listed: list[str] = []
    if path.name == INDS:
        with (
            suppress(OSError, ValueError, csv.Error, KeyError),
            path.with_name(PER_QUERY).open(encoding="utf-8", newline="") as table,
        ):
            listed = [row["path"] for row in csv.DictReader(table)]
    for row, (before, now) in enumerate(zip(listed, paths, strict=False)):
        if before != now:
            raise InputError(
                f"neighbour file {path} is of other images: by {PER_QUERY} beside it row {row} is of {before}, "
                f"expected {now}; make it anew with eval_global.py"
            )


def _check_self_matches(path: Path | str, neighbours: np.ndarray) -> None:
    """Report queries that are among their own neighbours; InputError for too many."""
    has_own = (neighbours == np.arange(len(neighbours))[:, None]).any(axis=1)
    count, fraction = int(has_own.sum()), has_own.mean()
    if fraction > MAX_SELF_MATCHES:
        raise InputError(
            f"neighbour file {path}: {count} of {len(neighbours)} queries are among their own neighbours (the first in "
            f"row {has_own.argmax()}), and would find themselves: make it anew with eval_global.py"
        )
    if count:
        print(
            f"neighbour file {path}: {count} of {len(neighbours)} queries are among their own neighbours and count as "
            f"matches; recalls are at most {100 * fraction:.2g} points too high by it"
        )


def save_neighbours(folder: Path | str, distances: np.ndarray, positions: np.ndarray) -> None:
    """Write `nn_dists.pkl` (float32, distances or logits) and `nn_inds.pkl` (int64), both (n, K); both or neither."""
    with atomic_write_all(Path(folder) / "nn_dists.pkl", Path(folder) / INDS) as (dists, inds):
        _dump(distances.astype(np.float32, copy=False), dists)
        _dump(positions.astype(np.int64, copy=False), inds)
