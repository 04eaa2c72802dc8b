"""Split files: the photos of a set and their classes."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from os.path import normpath
from pathlib import Path
from typing import NamedTuple

from sop.lists import malformed, numbered_lines
from utils.errors import InputError
from utils.io.atomic import atomic_write_all

LINE = re.compile(r"(.+),[ \t]*([0-9]{1,18})[ \t]*", re.DOTALL)


class Split(NamedTuple):
    """The content of a split file: image paths below the dataset's folder, and their class numbers."""

    paths: list[str]
    classes: list[int]


def read_split(folder: Path | str, name: str) -> Split:
    """Read the split file `name` of a dataset folder: UTF-8, one line `path,class` per image.

    A path may be absolute, or lead out of the folder. InputError, with the line, for a malformed file.
    """
    folder = Path(folder)
    with suppress(OSError):  # reading the file reports it
        if not folder.is_dir():
            raise InputError(f"dataset folder {folder} does not exist: run prepare_data.py, or set dataset.data_path")
    file, split = folder / name, Split([], [])
    for number, line in numbered_lines(file, "run prepare_data.py, or set dataset.train_file and .test_file"):
        fields = LINE.fullmatch(line)
        if not fields:
            raise malformed(file, number, "'path,class number' with at most 18 digits", line)
        split.paths.append(fields[1])
        split.classes.append(int(fields[2]))
    if not split.paths:
        raise InputError(f"split file {file} is empty: run prepare_data.py again")
    return split


def write_splits(folder: Path, splits: Mapping[str, Split]) -> None:
    """Write the split files of a dataset folder, all or none, without a newline at the end; keys are file names."""
    with atomic_write_all(*(folder / name for name in splits)) as files:
        for file, split in zip(files, splits.values(), strict=True):
            file.write("\n".join(f"{path},{number}" for path, number in zip(*split, strict=True)).encode())


def repeats(*lists: tuple[str, Split]) -> Iterator[str]:
    """Lines on photos that are listed more than once in a split file, or in two, query and gallery."""
    if len(lists) == 2 and lists[0] == lists[1]:
        yield f"{lists[0][0]} is both query and gallery: its photos find themselves"
        lists = lists[:1]
    names, counts = [name for name, _ in lists], [Counter(map(normpath, split.paths)) for _, split in lists]
    for name, count in zip(names, counts, strict=True):
        if count.total() > len(count):
            yield f"{name}: {_photos(sum(times > 1 for times in count.values()))} listed more than once"
    if len(lists) == 2 and (in_both := counts[0].keys() & counts[1].keys()):
        yield f"{_photos(len(in_both))} in both {names[0]} and {names[1]}: they find themselves"
    classes = defaultdict(set)
    for _, split in lists:
        for path, number in zip(*split, strict=True):
            classes[normpath(path)].add(number)
    if different := [path for path, numbers in classes.items() if len(numbers) > 1]:
        yield f"{' and '.join(names)}: {_photos(len(different))} listed with different classes, {different[0]} for one"


def _photos(count: int) -> str:
    return "1 photo is" if count == 1 else f"{count} photos are"


def hold_out(split: Split, num_classes: int) -> tuple[Split, Split]:
    """Split off the `num_classes` highest class numbers: the rest, and these.

    InputError if either would be empty.
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
    """Map the sorted class numbers of some splits to 0 ... n-1."""
    return {number: label for label, number in enumerate(sorted({c for split in splits for c in split.classes}))}
