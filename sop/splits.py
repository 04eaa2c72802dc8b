"""Split files: which photos a set has, and their classes."""

from pathlib import Path
from typing import NamedTuple

from utils.errors import InputError
from utils.files import atomic_write

SOP_LISTS = ("Ebay_train.txt", "Ebay_test.txt")


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


def hold_out(split: Split, num_classes: int) -> tuple[Split, Split]:
    """A split without its `num_classes` highest class numbers, and a split of these.

    InputError unless classes are left on both sides.
    """
    numbers = sorted(set(split.classes))
    if not 0 < num_classes < len(numbers):
        raise InputError(f"val_classes={num_classes} of {len(numbers)} training classes cannot be held out")
    first_held_out = numbers[-num_classes]
    parts = Split([], []), Split([], [])
    for path, number in zip(*split, strict=True):
        part = parts[number >= first_held_out]
        part.paths.append(path)
        part.classes.append(number)
    return parts


def class_map(*splits: Split) -> dict[int, int]:
    """The class numbers of some splits, sorted, mapped to 0 ... n-1."""
    return {number: label for label, number in enumerate(sorted({c for split in splits for c in split.classes}))}
