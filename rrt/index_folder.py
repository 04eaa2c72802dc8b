"""An index of photos: a folder with the network, and descriptors and local maps of each photo.

* `model`: the network, as `Reranker.save_pretrained` writes it,
* `part_N`: a store (`utils.store.store`) of up to PART photos that were embedded together,
* `index.json`: `format`, the network's sum as `model`, the numbers of photos of `parts`, the number of the `next` part,
  and the `photos`: path, size, the times of change of content and file, part and row.

`index.json` is replaced whole, after what it tells of is on the disk: an interrupt costs the part that is being made.
No number of a part comes twice, so that who searches meanwhile finds a part as it was, or none.
"""

import json
import os
import re
from pathlib import Path
from typing import NamedTuple

import torch

from rrt.photos import is_hidden
from rrt.pretrained import CONFIG, WEIGHTS, load
from rrt.reranker import Reranker
from utils.errors import InputError
from utils.io.atomic import atomic_write
from utils.store.feature_cache import DIMS
from utils.store.store import Store

FORMAT = 2  # 1: photos as stored, not turned upright, and without the time of change of the file itself
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
        """What tells the file from another in its place."""
        return self.size, self.mtime, self.ctime


class Content(NamedTuple):
    """What `index.json` holds."""

    model: str
    parts: dict[int, int]  # photos of each part, those that are gone included
    next: int  # a part's number
    photos: list[Photo]


def read_content(folder: Path) -> Content:
    """What `index.json` of a folder holds; InputError where there is none, it is damaged, or of another version."""
    file = folder / "index.json"
    if not file.is_file():
        raise InputError(f"{folder} is no index: `python -m rrt index PHOTOS... --to {folder}` makes one")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        version = content["format"]
        if version == FORMAT:
            return _checked(content)
        if not isinstance(version, int):
            raise ValueError("its version is no number")
    except OSError as error:
        raise InputError(
            f"{file} cannot be read ({error.strerror or error}): mend that, the index may be whole"
        ) from error
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise InputError(f"{file} is damaged: delete the folder and index again") from error
    made = "was made before photos were turned upright" if version == 1 else f"is of version {version}, not {FORMAT}"
    raise InputError(f"the index {folder} {made}: index again into a new folder")


def _checked(content: dict) -> Content:
    """The content of `index.json`; ValueError, KeyError, TypeError or OverflowError where it makes no sense."""
    parts = {int(number): int(count) for number, count in content["parts"]}
    photos = [Photo(str(path), *map(int, numbers)) for path, *numbers in content["photos"]]
    following = int(content["next"])
    if not all(photo.path.startswith(os.sep) and 0 <= photo.row < parts[photo.part] for photo in photos):
        raise ValueError("it names rows that no part has")
    if max(parts, default=-1) >= following:
        raise ValueError("the next part is there already")
    return Content(str(content["model"]), parts, following, photos)


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


def is_whole(store: Store, count: int) -> bool:
    return store.count_valid_rows(DIMS) == count


def own_reranker(folder: Path, model: str, device: torch.device | str | None = None) -> Reranker:
    """The network that an index keeps, whose sum is `model`; InputError where it is damaged or gone."""
    damaged = InputError(
        f"{folder / 'model'} is damaged or gone: `python -m rrt index PHOTOS... --to {folder} --model MODEL` writes it "
        "anew, where MODEL is the one that the index was made with; what is embedded stays"
    )
    try:
        pretrained = load(folder.absolute() / "model", None, {})  # absolute: no repository of the hub
    except InputError as error:
        raise damaged from error
    reranker = Reranker(*pretrained, device=device)
    if reranker.digest() != model:
        raise damaged
    return reranker


def has_model(folder: Path, model: str) -> bool:
    """Whether an index keeps its network."""
    try:
        own_reranker(folder, model, "cpu")
        return True
    except InputError:
        return False


def is_own(path: Path) -> bool:
    """Whether something in the folder is an index's, or the system's."""
    if path.is_dir() and not is_hidden(path.name):
        is_flat = not any(child.is_dir() and not is_hidden(child.name) for child in path.iterdir())
        return bool(OWN_FOLDERS.fullmatch(path.name)) and is_flat and all(map(is_own, path.iterdir()))
    return path.name in OWN_FILES or is_hidden(path.name)
