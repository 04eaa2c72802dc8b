"""Split files and the image sets they name."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from sop.decoding import naming
from sop.transforms import Transform, describe
from utils.errors import InputError
from utils.files import atomic_write

SOP_LISTS = ("Ebay_train.txt", "Ebay_test.txt")


class Draw(NamedTuple):
    """One image to load, and the key of its random transform: (seed, epoch, position in the epoch)."""

    image: int
    key: tuple[int, int, int]


class Split(NamedTuple):
    """What a split file lists: image paths below the dataset's folder, and their class numbers."""

    paths: list[str]
    classes: list[int]


def read_split(folder: Path | str, name: str) -> Split:
    """Read the split file `name` of a dataset folder: one line an image, `path,class`. InputError if it is not so."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"dataset folder {folder} does not exist: run prepare_data.py, or set dataset.data_path")
    file, split = folder / name, Split([], [])
    if not file.is_file():
        raise InputError(
            f"split file {file} does not exist: run prepare_data.py, or set dataset.train_file and .test_file"
        )
    for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        path, comma, class_number = line.rpartition(",")
        if not (path and comma and class_number.strip().isdigit()):
            raise InputError(f"{file}, line {number}: expected 'path,class number', found {line!r}")
        split.paths.append(path)
        split.classes.append(int(class_number))
    if not split.paths:
        raise InputError(f"split file {file} is empty: run prepare_data.py again")
    return split


def write_split(file: Path, split: Split) -> None:
    """Write a split file, with no newline at the end; InputError for the name of one of SOP's own lists."""
    if file.name in SOP_LISTS:
        raise InputError(f"{file} is SOP's own list and was left as it is: choose another train_file or test_file")
    with atomic_write(file) as content:
        content.write("\n".join(f"{path},{number}" for path, number in zip(*split, strict=True)).encode())


def photo_sum(folder: Path, paths: Sequence[str]) -> str:
    """A SHA-256 sum, in hexadecimal, of photos' paths, sizes and times of change; InputError where one is missing."""
    content = hashlib.sha256()
    for path in paths:
        try:
            stat = (folder / path).stat()
        except OSError as error:
            raise InputError(
                f"photo {folder / path} cannot be read ({error.strerror}): run prepare_data.py, or set "
                "dataset.data_path"
            ) from error
        content.update(repr((path, stat.st_size, stat.st_mtime_ns)).encode())
    return content.hexdigest()


def hold_out(split: Split, num_classes: int) -> tuple[Split, Split]:
    """A split without its `num_classes` highest class numbers, and a split of these.

    InputError unless classes are left on both sides.
    """
    numbers = sorted(set(split.classes))
    if not 0 < num_classes < len(numbers):
        raise InputError(f"val_classes={num_classes} of {len(numbers)} training classes cannot be held out")
    least = numbers[-num_classes]
    parts = Split([], []), Split([], [])
    for path, number in zip(*split, strict=True):
        part = parts[number >= least]
        part.paths.append(path)
        part.classes.append(number)
    return parts


def class_map(*splits: Split) -> dict[int, int]:
    """The class numbers of some splits, sorted, mapped to 0 ... n-1."""
    return {number: label for label, number in enumerate(sorted({c for split in splits for c in split.classes}))}


class ImageSet(Dataset):
    """The images of a split: `(pixels, label, index)`, pixels being what `transform` makes of the opened photo.

    An item is asked for by its index, or by a `Draw`, whose key then decides all that the transform draws.
    """

    def __init__(self, folder: Path | str, split: Split, labels: dict[int, int], transform: Transform):
        self.folder, self.transform = Path(folder), transform
        self.paths, self.classes = split
        self.labels = np.array([labels[number] for number in split.classes])

    def __len__(self) -> int:
        return len(self.paths)

    def made_from(self) -> dict[str, str]:
        """What the pixels follow from, in words and sums; InputError where a photo is missing."""
        return {"photos": photo_sum(self.folder, self.paths), "transform": describe(self.transform)}

    def __getitem__(self, item: int | Draw) -> tuple[Any, int, int]:
        index, key = item if isinstance(item, Draw) else (item, None)
        path = self.folder / self.paths[index]
        with naming(path), Image.open(path) as photo, _drawing_by(key):
            return self.transform(photo), int(self.labels[index]), index


@contextmanager
def _drawing_by(key: Sequence[int] | None) -> Iterator[None]:
    """torch's CPU random numbers come from `key` inside the block, and go on as before after it."""
    if key is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))
        yield
