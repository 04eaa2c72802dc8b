"""An index of photos: a folder with the network, and the descriptors and local maps of each photo.

* `model`: the network, as `Reranker.save_pretrained` writes it,
* `part_N`: a store (`utils.store.store`) of up to PART_SIZE photos that were embedded together,
* `index.json`: `format`; `model`, the network's digest; `parts`, the number of photos in each part; `next`, the number
  of the next part; and `photos`: path, size, mtime, ctime, part and row.

`index.json` is replaced atomically, after its parts are on the disk: an interrupt costs the part that is being made.
Part numbers are never used twice, so a search at the same time finds a part unchanged, or no part.
"""

import json
import os
import re
from pathlib import Path
from typing import NamedTuple

import torch

from rrt.photos import is_hidden
from rrt.pretrained import CARD, CONFIG, WEIGHTS, load
from rrt.reranker import Reranker
from utils.errors import InputError
from utils.io.atomic import atomic_write
from utils.retrieval.fitted import FittedWeights
from utils.store.feature_cache import DIMS
from utils.store.store import Store

FORMAT = 2  # 1: photos were not turned upright, and had no ctime
OWN_FOLDERS = re.compile(r"model|part_\d+")
OWN_FILES = ("index.json", "store.json", *(f"{name}.npy" for name in DIMS), CONFIG, WEIGHTS)


class Photo(NamedTuple):
    """A photo as it was embedded."""

    path: str
    size: int  # bytes
    mtime: int  # ns since 1970, as `utils.io.disk.stamp` has them
    ctime: int
    part: int
    row: int

    @property
    def stamp(self) -> tuple[int, int, int]:
        """As `utils.io.disk.stamp` makes it: another file of the same name has another stamp."""
        return self.size, self.mtime, self.ctime


class Content(NamedTuple):
    """The content of `index.json`."""

    model: str
    parts: dict[int, int]  # number of photos by part, including removed ones
    next: int  # number of the next part
    photos: list[Photo]


def read_content(folder: Path) -> Content:
    """The content of `index.json`; InputError where it is missing, damaged, or of another version."""
    file = folder / "index.json"
    if not file.is_file():
        raise InputError(f"{folder} is no index: `python -m rrt index PHOTOS... --to {folder}` makes one")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        version = content["format"]
        if version == FORMAT:
            return _checked(content)
    except OSError as error:
        raise InputError(
            f"{file} cannot be read ({error.strerror or error}): the index itself may be intact"
        ) from error
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise InputError(f"{file} is damaged: delete the folder and index again") from error
    raise InputError(f"the index {folder} is of version {version}, not {FORMAT}: index again into a new folder")


def _checked(content: dict) -> Content:
    """The content of a decoded `index.json`; ValueError, KeyError, TypeError or OverflowError where it is damaged."""
    parts = {int(number): int(count) for number, count in content["parts"]}
    photos = [Photo(str(path), *map(int, numbers)) for path, *numbers in content["photos"]]
    next_part = int(content["next"])
    if not all(photo.path.startswith(os.sep) and 0 <= photo.row < parts[photo.part] for photo in photos):
        raise ValueError("a photo has a row that its part does not have")
    if max(parts, default=-1) >= next_part:
        raise ValueError("the next part exists already")
    return Content(str(content["model"]), parts, next_part, photos)


def write_content(folder: Path, content: Content) -> None:
    written = {
        "format": FORMAT,
        "model": content.model,
        "parts": list(content.parts.items()),
        "next": content.next,
        "photos": content.photos,
    }
    with atomic_write(folder / "index.json") as file:
        file.write(json.dumps(written).encode())


def part_of(folder: Path, content: Content, number: int) -> Store:
    return Store(folder / f"part_{number}", DIMS, content.parts[number], {"model": content.model})


def is_intact(store: Store, num_photos: int) -> bool:
    return store.count_valid_rows(DIMS) == num_photos


def own_reranker(folder: Path, model: str, device: torch.device | str | None = None) -> Reranker:
    """The network of an index, whose digest is `model`; InputError where it is damaged or missing."""
    damaged = InputError(
        f"{folder / 'model'} is damaged or missing: `python -m rrt index PHOTOS... --to {folder} --model MODEL` writes "
        "it again, where MODEL is the one that made the index; embedded photos are kept"
    )
    try:
        pretrained = load(folder.absolute() / "model", None, {})  # a relative path may name a repository of the hub
    except InputError as error:
        raise damaged from error
    reranker = Reranker(*pretrained, device=device)
    if reranker.digest() != model:
        raise damaged
    return reranker


def has_model(folder: Path, model: str, fusion: FittedWeights | None) -> bool:
    """Whether the network of an index is intact, and has these weights of its ranking."""
    try:
        return own_reranker(folder, model, "cpu").fusion == fusion
    except InputError:
        return False


def is_own(path: Path) -> bool:
    """Whether a file or folder belongs to an index, or is hidden."""
    if path.is_dir() and not is_hidden(path.name):
        is_flat = not any(child.is_dir() and not is_hidden(child.name) for child in path.iterdir())
        return bool(OWN_FOLDERS.fullmatch(path.name)) and is_flat and all(map(is_own, path.iterdir()))
    return path.name in OWN_FILES or path.parts[-2:] == ("model", CARD) or is_hidden(path.name)
