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
import shutil
from collections.abc import Iterable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from rrt.photos import is_hidden
from rrt.pretrained import CONFIG, WEIGHTS, load
from rrt.reranker import Features, Fusion, Reranker
from sop.images.photo import naming
from sop.images.reading import read_photos
from utils.errors import InputError
from utils.io.atomic import atomic_write
from utils.io.disk import stamp
from utils.io.lock import exclusive_lock
from utils.runtime.precision import float32_throughout
from utils.store.array_file import StoredRows
from utils.store.feature_cache import DIMS
from utils.store.store import Store

FORMAT = 2  # 1: photos as stored, not turned upright, and without the time of change of the file itself
OPEN_PARTS = 256  # files at a time
FEW = 10  # of so many photos of an index one may be taken out unasked
PART = 256  # photos; an interrupt costs no more. Maps of 128 x 7 x 7 take 6 MB
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


class Update(NamedTuple):
    """What a call of `update` has done, in numbers of photos, and what it could not read."""

    photos: int  # in the index now
    added: int
    updated: int  # embedded anew: they have changed, or their part was damaged
    removed: int
    kept: int  # of those that could not be read: as they were embedded before
    not_given: int  # in the index, and not among those given
    problems: list[str]  # a line for each photo that could not be read


class Found(NamedTuple):
    """A photo of the index, for a query; without reranking there is no logit, and the cosine is the score."""

    photo: str
    score: float | None  # None: behind the candidates that were rescored
    logit: float | None
    cosine: float  # from -1 to 1
    rank_by_cosine: int  # from 1
    stamp: tuple[int, int, int]  # of the file that was embedded


@float32_throughout()
def update(
    folder: Path,
    paths: Iterable[Path],
    reranker: Reranker,
    progress: bool = False,
    sync: bool = False,
    yes: bool = False,
) -> Update:
    """Have the photos `paths` in the index in `folder`: new and changed ones are embedded.

    What was interrupted goes on; what is damaged, the network included, is made anew. A photo that cannot be read is
    said; one that was embedded before stays as it was. So do photos of the index that are not among `paths`, unless
    `sync` takes them out: at most one in FEW, and none of a folder that is empty now, as where a drive is away, unless
    `yes` allows it.
    InputError where `sync` would take out more, where the index is of another network, is being written by another
    process or cannot be written, and where none of `paths` can be read.
    """
    if folder.is_dir() and not all(map(_is_own, folder.iterdir())):
        raise InputError(f"{folder} has files that are not an index's: choose a new folder")
    with exclusive_lock(folder / ".lock", str(folder), "wait for it, or choose another folder"):
        model = reranker.digest()
        before = read_content(folder) if (folder / "index.json").exists() else Content(model, {}, 0, [])
        if before.model != model:
            raise InputError(f"{folder} is an index of another network: choose another folder, or give its own")
        given = {os.path.abspath(path) for path in paths}  # noqa: PTH100  # links keep their names
        photos = [photo for photo in before.photos if photo.path in given or not sync]
        if not yes:
            _check_removal(folder, before.photos, photos)
        if before.photos and not _has_model(folder, model):
            reranker.save_pretrained(folder / "model")
        whole = {number for number, count in before.parts.items() if _is_whole(_part(folder, before, number), count)}
        failed: dict[str, str] = {}  # what is wrong, by path
        stamps = _stamps(given | {photo.path for photo in photos if photo.part not in whole}, failed)
        current = {photo.path for photo in photos if photo.part in whole and stamps.get(photo.path) == photo.stamp}
        missing = [path for path in stamps if path not in current]
        content = before._replace(photos=photos)
        with tqdm(total=len(missing), desc="Indexing", unit="photo", disable=not (progress and missing)) as shown:
            for start in range(0, len(missing), PART):
                names = missing[start : start + PART]
                content = _with_part(folder, content, names, stamps, reranker, failed)
                shown.update(len(names))
        if given <= failed.keys():
            raise InputError("; ".join(["no photo could be read", *list(failed.values())[:3]]))
        photos = [photo for photo in content.photos if photo.part in whole or photo.part >= before.next]
        used = {photo.part for photo in photos}
        content = content._replace(photos=photos, parts={number: content.parts[number] for number in sorted(used)})
        if content != read_content(folder):
            _write_content(folder, content)
        for path in folder.glob("part_*"):
            if int(path.name.removeprefix("part_")) not in used:
                shutil.rmtree(path, ignore_errors=True)
        return _told(before, photos, given, failed)


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


class Index:
    """An index that is searched, as it is now; `reranker` is its network. InputError where it is damaged."""

    @float32_throughout()
    def __init__(self, folder: Path, device: torch.device | str | None = None):
        self.folder, self.content = folder, read_content(folder)
        self.photos = self.content.photos
        if not self.photos:
            raise InputError(f"{folder} has no photos: index some")
        self.reranker = own_reranker(folder, self.content.model, device)
        self.parts = np.array([photo.part for photo in self.photos])
        self.rows = np.array([photo.row for photo in self.photos])
        of_parts = {number: self._rows_of(number, "descriptors")[:] for number in self.content.parts}
        self.descriptors = torch.stack([of_parts[photo.part][photo.row] for photo in self.photos])
        self._maps = lru_cache(OPEN_PARTS)(partial(self._rows_of, name="maps"))

    def _rows_of(self, part: int, name: str) -> StoredRows:
        """A tensor of a part, once it is found to be whole."""
        store = _part(self.folder, self.content, part)
        if store.count_valid_rows([name]) < self.content.parts[part]:
            if read_content(self.folder) != self.content:
                raise InputError(f"{self.folder} has been indexed again meanwhile: search again")
            raise InputError(f"{store.folder} is damaged: run `python -m rrt index` again, which makes it anew")
        return store.tensors[name]

    @float32_throughout()
    def search(self, queries: Features, top: int, rerank: int = 0, fusion: Fusion = None) -> list[list[Found]]:
        """The `top` photos for each query, best first: by cosine, the first `rerank` of them by `Reranker.rank`."""
        kept = min(max(top, rerank), len(self.photos))
        cosines, positions = (queries.descriptors @ self.descriptors.T).topk(kept)
        return [
            self._ranked(Features(*query), own_cosines, own_positions, rerank, fusion)[:top]
            for *query, own_cosines, own_positions in zip(
                queries.descriptors[:, None],
                queries.maps[:, None],
                cosines.clamp(-1, 1).tolist(),  # rounding leads beyond
                positions,
                strict=True,
            )
        ]

    def _ranked(
        self, query: Features, cosines: list[float], positions: Tensor, rerank: int, fusion: Fusion
    ) -> list[Found]:
        photos = [self.photos[position] for position in positions.tolist()]
        found = [
            Found(photo.path, None if rerank else cosine, None, cosine, rank, photo.stamp)
            for rank, (photo, cosine) in enumerate(zip(photos, cosines, strict=True), start=1)
        ]
        if not rerank:
            return found
        rescored = positions[:rerank]
        gallery = Features(self.descriptors[rescored], self._maps_of(rescored.numpy()))
        matches = self.reranker.rank(query, gallery, fusion=fusion)
        ranked = [found[match.index]._replace(score=match.score, logit=match.logit) for match in matches]
        return ranked + found[rerank:]

    def _maps_of(self, positions: np.ndarray) -> Tensor:
        """The local maps of some photos."""
        parts, rows = self.parts[positions], self.rows[positions]
        maps = self._maps(int(parts[0])).empty_rows(len(positions))
        for number in np.unique(parts).tolist():
            own = np.flatnonzero(parts == number)
            own = own[rows[own].argsort()]
            stored = self._maps(number)
            maps[torch.from_numpy(own)] = stored.read(rows[own], stored.empty_rows(len(own)))
        return maps


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


def _is_own(path: Path) -> bool:
    """Whether something in the folder is an index's, or the system's."""
    if path.is_dir() and not is_hidden(path.name):
        is_flat = not any(child.is_dir() and not is_hidden(child.name) for child in path.iterdir())
        return bool(OWN_FOLDERS.fullmatch(path.name)) and is_flat and all(map(_is_own, path.iterdir()))
    return path.name in OWN_FILES or is_hidden(path.name)


def _has_model(folder: Path, model: str) -> bool:
    """Whether an index keeps its network."""
    try:
        own_reranker(folder, model, "cpu")
        return True
    except InputError:
        return False


def _check_removal(folder: Path, before: Sequence[Photo], kept: Sequence[Photo]) -> None:
    """Raise InputError where many photos are to be taken out of an index, or some of a drive that may be away."""
    removed = {photo.path for photo in before} - {photo.path for photo in kept}
    parents = {Path(path).parent for path in removed}
    empty = sorted({str(nearest) for nearest in map(_nearest, parents) if _is_empty(nearest)})
    if len(removed) * FEW > len(before) or empty:
        raise InputError(
            f"{len(removed)} of the {len(before)} photos of {folder} are not among those given"
            + f", some of folders that are empty now, as where a drive is away ({', '.join(empty[:3])})" * bool(empty)
            + ": nothing was changed; index without --sync to keep them, or with --sync --yes to take them out"
        )


def _nearest(folder: Path) -> Path:
    """The first of a folder and those above it that is there."""
    return next(path for path in (folder, *folder.parents) if os.path.isdir(path))  # noqa: PTH112  # Path's can raise


def _is_empty(folder: Path) -> bool:
    """Whether nothing is in a folder, or it cannot be read."""
    try:
        return all(is_hidden(path.name) for path in folder.iterdir())
    except OSError:
        return True


def _stamps(paths: Iterable[str], failed: dict[str, str]) -> dict[str, tuple[int, int, int]]:
    """Of each file, by path, in order; of the others `failed` tells what is wrong."""
    stamps = {}
    for path in sorted(paths):
        try:
            with naming(path):
                stamps[path] = stamp(path)
        except InputError as error:
            failed[path] = str(error)
    return stamps


def _told(before: Content, photos: Sequence[Photo], given: set[str], failed: dict[str, str]) -> Update:
    """What has been done to an index, which has `photos` now."""
    old, new = ({photo.path for photo in listed} for listed in (before.photos, photos))
    embedded = {photo.path for photo in photos if photo.part >= before.next}
    return Update(
        photos=len(new),
        added=len(embedded - old),
        updated=len(embedded & old),
        removed=len(old - new),
        kept=len(new & failed.keys()),
        not_given=len(new - given),
        problems=list(failed.values()),
    )


def _with_part(
    folder: Path,
    content: Content,
    names: Sequence[str],
    stamps: dict[str, tuple[int, int, int]],
    reranker: Reranker,
    failed: dict[str, str],
) -> Content:
    """The content with another part, of those of some photos that can be read; `failed` tells of the others."""
    images = {}
    for name, pixels in zip(names, read_photos([Path(name) for name in names], reranker.pixels), strict=True):
        if isinstance(pixels, InputError):
            failed[name] = str(pixels)
        else:
            images[name] = pixels
    if not images:
        return content
    if not content.photos:  # a model without photos may be another one, of a call that was interrupted
        reranker.save_pretrained(folder / "model")
    number = content.next
    parts = content.parts | {number: len(images)}
    others = [photo for photo in content.photos if photo.path not in images]
    photos = [Photo(name, *stamps[name], number, row) for row, name in enumerate(images)]
    content = Content(content.model, parts, number + 1, others + photos)
    _part(folder, content, number).write(0, [reranker.embed_pixels(torch.stack(list(images.values())))])
    _write_content(folder, content)
    return content


def _part(folder: Path, content: Content, number: int) -> Store:
    return Store(folder / f"part_{number}", DIMS, content.parts[number], {"model": content.model})


def _is_whole(store: Store, count: int) -> bool:
    return store.count_valid_rows(DIMS) == count


def _write_content(folder: Path, content: Content) -> None:
    written = {
        "format": FORMAT,
        "model": content.model,
        "parts": list(content.parts.items()),
        "next": content.next,
        "photos": content.photos,
    }
    with atomic_write(folder / "index.json") as file:
        file.write(json.dumps(written).encode())
