"""Updates of an index: new and changed photos are embedded in parts, others are kept or removed."""

import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from rrt.index_folder import Content, Photo, has_model, is_intact, is_own, part_of, read_content, write_content
from rrt.photos import is_hidden
from rrt.reranker import Reranker
from sop.images.photo import naming
from sop.images.reading import read_photos
from utils.errors import InputError
from utils.io.disk import stamp
from utils.io.lock import exclusive_lock
from utils.runtime.precision import float32_throughout

MAX_REMOVED = 0.1  # of an index's photos, without `yes`
PART_SIZE = 256  # photos, the most that an interrupt costs. Maps of 128 x 7 x 7 take 6 MB


class Update(NamedTuple):
    """The result of `update`, in numbers of photos."""

    photos: int  # in the index now
    added: int
    updated: int  # embedded again: they have changed, or their part was damaged
    removed: int
    kept: int  # could not be read, and are kept as they were embedded before
    not_given: int  # in the index, but not given to `update`
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
    """Embed the new and changed photos of `paths` into the index `folder`. An interrupted update continues.

    Damaged parts and a damaged network are replaced, and the weights of its ranking by those of `reranker`. A
    photo that cannot be read is reported; one that was embedded before is kept. Photos of the index that are not among
    `paths` are kept, too, unless `sync` removes them: without `yes` at most MAX_REMOVED of all photos, and none of a
    folder that is empty now, as where a drive is not mounted.
    InputError where `sync` would remove more, where the index is of another network, is being written by another
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
        if before.photos and not has_model(folder, before.model, reranker.fusion):
            reranker.save_pretrained(folder / "model")
        intact = {part for part, size in before.parts.items() if is_intact(part_of(folder, before, part), size)}
        problems: dict[str, str] = {}  # by path
        stamps = _stamps(given | {photo.path for photo in photos if photo.part not in intact}, problems)
        current = {photo.path for photo in photos if photo.part in intact and stamps.get(photo.path) == photo.stamp}
        missing = [path for path in stamps if path not in current]
        content = before._replace(photos=photos)
        with tqdm(total=len(missing), desc="Indexing", unit="photo", disable=not (progress and missing)) as bar:
            for start in range(0, len(missing), PART_SIZE):
                paths_of_part = missing[start : start + PART_SIZE]
                content = _with_part(folder, content, paths_of_part, stamps, reranker, problems)
                bar.update(len(paths_of_part))
        if given <= problems.keys():
            raise InputError("; ".join(["no photo could be read", *list(problems.values())[:3]]))
        photos = [photo for photo in content.photos if photo.part in intact or photo.part >= before.next]
        _remove_unused_parts(folder, content._replace(photos=photos))
        return _summary(before, photos, given, problems)


def _content_of(folder: Path, model: str) -> Content:
    """The content of an index, empty for a new one; InputError where its network's digest is not `model`."""
    content = read_content(folder) if (folder / "index.json").exists() else Content(model, {}, 0, [])
    if content.model != model:
        raise InputError(f"{folder} is an index of another network: choose another folder, or give its own")
    return content


def _stamps(paths: Iterable[str], problems: dict[str, str]) -> dict[str, tuple[int, int, int]]:
    """The stamps of files by path, sorted. `problems` gets those of the other files."""
    stamps = {}
    for path in sorted(paths):
        try:
            with naming(path):
                stamps[path] = stamp(path)
        except InputError as error:
            problems[path] = str(error)
    return stamps


def _with_part(
    folder: Path,
    content: Content,
    paths: Sequence[str],
    stamps: dict[str, tuple[int, int, int]],
    reranker: Reranker,
    problems: dict[str, str],
) -> Content:
    """The content with a new part of those photos that can be read. `problems` gets those of the others."""
    images = {}
    for path, pixels in zip(paths, read_photos([Path(path) for path in paths], reranker.pixels), strict=True):
        if isinstance(pixels, InputError):
            problems[path] = str(pixels)
        else:
            images[path] = pixels
    if not images:
        return content
    if not content.photos:  # a model of an interrupted call may be there, and may be another one
        reranker.save_pretrained(folder / "model")
    part = content.next
    parts = content.parts | {part: len(images)}
    others = [photo for photo in content.photos if photo.path not in images]
    photos = [Photo(path, *stamps[path], part, row) for row, path in enumerate(images)]
    content = Content(content.model, parts, part + 1, others + photos)
    part_of(folder, content, part).write(0, [reranker.embed_pixels(torch.stack(list(images.values())))])
    write_content(folder, content)
    return content


def _remove_unused_parts(folder: Path, content: Content) -> None:
    """Write the content, and delete the parts without photos."""
    used = {photo.part for photo in content.photos}
    content = content._replace(parts={part: content.parts[part] for part in sorted(used)})
    if content != read_content(folder):
        write_content(folder, content)
    for path in folder.glob("part_*"):
        if int(path.name.removeprefix("part_")) not in used:
            shutil.rmtree(path, ignore_errors=True)


def _summary(before: Content, photos: Sequence[Photo], given: set[str], problems: dict[str, str]) -> Update:
    """The result of an update after which the index has `photos`."""
    old, new = ({photo.path for photo in indexed} for indexed in (before.photos, photos))
    embedded = {photo.path for photo in photos if photo.part >= before.next}
    return Update(
        photos=len(new),
        added=len(embedded - old),
        updated=len(embedded & old),
        removed=len(old - new),
        kept=len(new & problems.keys()),
        not_given=len(new - given),
        problems=list(problems.values()),
    )


def _check_removal(folder: Path, before: Sequence[Photo], kept: Sequence[Photo]) -> None:
    """Raise InputError where many photos would be removed, or any of a folder that is empty now."""
    removed = {photo.path for photo in before} - {photo.path for photo in kept}
    parents = {Path(path).parent for path in removed}
    empty = sorted({str(nearest) for nearest in map(_nearest_existing, parents) if _is_empty(nearest)})
    if len(removed) > MAX_REMOVED * len(before) or empty:
        raise InputError(
            f"{len(removed)} of the {len(before)} photos of {folder} are not among those given"
            + f", some of folders that are empty now, as where a drive is away ({', '.join(empty[:3])})" * bool(empty)
            + ": nothing was changed; index without --sync to keep them, or with --sync --yes to remove them"
        )


def _nearest_existing(folder: Path) -> Path:
    """The folder, or the first one above it that exists."""
    return next(path for path in (folder, *folder.parents) if os.path.isdir(path))  # noqa: PTH112  # Path's can raise


def _is_empty(folder: Path) -> bool:
    """Whether a folder has no files but hidden ones, or cannot be read."""
    try:
        return all(is_hidden(path.name) for path in folder.iterdir())
    except OSError:
        return True
