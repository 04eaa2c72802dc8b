"""Photos into an index: new and changed ones are embedded, in parts; others stay, or are taken out."""

import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from rrt.index_folder import Content, Photo, has_model, is_own, is_whole, part_of, read_content, write_content
from rrt.photos import is_hidden
from rrt.reranker import Reranker
from sop.images.photo import naming
from sop.images.reading import read_photos
from utils.errors import InputError
from utils.io.disk import stamp
from utils.io.lock import exclusive_lock
from utils.runtime.precision import float32_throughout

FEW = 10  # of so many photos of an index one may be taken out unasked
PART = 256  # photos; an interrupt costs no more. Maps of 128 x 7 x 7 take 6 MB


class Update(NamedTuple):
    """What a call of `update` has done, in numbers of photos, and what it could not read."""

    photos: int  # in the index now
    added: int
    updated: int  # embedded anew: they have changed, or their part was damaged
    removed: int
    kept: int  # of those that could not be read: as they were embedded before
    not_given: int  # in the index, and not among those given
    problems: list[str]  # a line for each photo that could not be read


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
    if folder.is_dir() and not all(map(is_own, folder.iterdir())):
        raise InputError(f"{folder} has files that are not an index's: choose a new folder")
    with exclusive_lock(folder / ".lock", str(folder), "wait for it, or choose another folder"):
        before = _content_of(folder, reranker.digest())
        given = {os.path.abspath(path) for path in paths}  # noqa: PTH100  # links keep their names
        photos = [photo for photo in before.photos if photo.path in given or not sync]
        if not yes:
            _check_removal(folder, before.photos, photos)
        if before.photos and not has_model(folder, before.model):
            reranker.save_pretrained(folder / "model")
        whole = {number for number, count in before.parts.items() if is_whole(part_of(folder, before, number), count)}
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
        _remove_unused_parts(folder, content._replace(photos=photos))
        return _told(before, photos, given, failed)


def _content_of(folder: Path, model: str) -> Content:
    """The content of an index, empty where there is none; InputError where its network's sum is not `model`."""
    content = read_content(folder) if (folder / "index.json").exists() else Content(model, {}, 0, [])
    if content.model != model:
        raise InputError(f"{folder} is an index of another network: choose another folder, or give its own")
    return content


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
    part_of(folder, content, number).write(0, [reranker.embed_pixels(torch.stack(list(images.values())))])
    write_content(folder, content)
    return content


def _remove_unused_parts(folder: Path, content: Content) -> None:
    """Write the content, and delete the parts that none of its photos is in."""
    used = {photo.part for photo in content.photos}
    content = content._replace(parts={number: content.parts[number] for number in sorted(used)})
    if content != read_content(folder):
        write_content(folder, content)
    for path in folder.glob("part_*"):
        if int(path.name.removeprefix("part_")) not in used:
            shutil.rmtree(path, ignore_errors=True)


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
