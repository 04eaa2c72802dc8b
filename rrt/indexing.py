"""Updates of an index: new and changed photos are embedded in batches, others are kept or removed."""

import os
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tqdm import tqdm

from rrt.index_metadata import add_metadata, read_metadata
from rrt.index_ranks import embed, share
from rrt.index_table import (
    Address,
    Photo,
    as_text,
    content_of,
    engine,
    has_model,
    is_folder,
    is_own,
    open_table,
    photos_in,
    save_model,
    write,
    writing,
)
from rrt.index_upkeep import keep_up
from rrt.photos import is_hidden
from rrt.reranker import Reranker
from rrt.words import MAPS
from sop.images.photo import naming
from utils.distributed.group import world_size
from utils.errors import InputError
from utils.io.disk import stamp
from utils.io.lock import exclusive_lock
from utils.runtime.precision import float32_throughout
from utils.settings import check_settings, one_of

if TYPE_CHECKING:
    from lancedb.table import Table

MAX_REMOVED = 0.1  # of an index's photos, without `yes`
BATCH_SIZE = 256  # photos of each rank, the most that an interrupt costs. Maps of 128 x 7 x 7 take 6 MB


class Update(NamedTuple):
    """The result of `update`, in numbers of photos."""

    photos: int  # in the index now
    added: int
    updated: int  # embedded again, as they have changed
    removed: int
    kept: int  # could not be read, and are kept as they were embedded before
    not_given: int  # in the index, but not given to `update`
    problems: list[str]  # a line for each photo that could not be read
    unknown: int = 0  # lines of the metadata without a photo in the index
    recall: float | None = None  # of the search's first 100, where an approximate one was made or extended


@float32_throughout()
def update(
    index: Address,
    paths: Iterable[Path],
    reranker: Reranker,
    progress: bool = False,
    sync: bool = False,
    yes: bool = False,
    metadata: Path | None = None,
    maps: str | None = None,
) -> Update:
    """Embed the new and changed photos of `paths` into an index. An interrupted update continues.

    A damaged network is replaced, and the weights of its ranking by those of `reranker`. A photo that cannot be read is
    reported; one that was embedded before is kept. Photos of the index that are not among `paths` are kept, too, unless
    `sync` removes them: without `yes` at most MAX_REMOVED of all photos, and none of a folder that is empty now, as
    where a drive is not mounted. `metadata` is a CSV file, whose columns are kept beside the photos.
    `maps` is the kind in which a new index keeps local maps: 'float16', which is the default, 'int8' or 'binary'.
    InputError where `sync` would remove more, where the index is of another network or kind, is being written by
    another process or cannot be written, where none of `paths` can be read, and for a map that cannot be kept.
    """
    check_settings({"maps": maps}, {"maps": one_of(*MAPS).or_none()})
    engine()  # before photos are embedded
    with _alone(index):
        described = None if metadata is None else read_metadata(metadata)
        table, digest = open_table(index), reranker.digest()
        if table is not None and content_of(table).model != digest:
            raise InputError(f"{index} is an index of another network: choose another folder, or give its own")
        if table is not None and maps not in (None, content_of(table).maps):
            raise InputError(
                f"{index} keeps maps in {content_of(table).maps}, not in {maps}: leave the kind of maps out, or index "
                "into a new folder"
            )
        before = [] if table is None else photos_in(table)
        given = {os.path.abspath(path) for path in paths}  # noqa: PTH100  # links keep their names
        removed = [photo.path for photo in before if photo.path not in given] if sync else []
        if not yes:
            _check_removal(index, before, removed)
        if table is not None and not has_model(index, digest, reranker.fusion):
            save_model(index, reranker)
        problems: dict[str, str] = {}  # by path
        stamps, old = _stamps(given, problems), {photo.path: photo for photo in before}
        missing = [Photo(path, *new) for path, new in stamps.items() if path not in old or old[path].stamp != new]
        embedded: list[str] = []
        if missing:
            share(reranker)
        with tqdm(total=len(missing), desc="Indexing", unit="photo", disable=not (progress and missing)) as bar:
            for start in range(0, len(missing), BATCH_SIZE * world_size()):
                batch = missing[start : start + BATCH_SIZE * world_size()]
                table = _with_batch(index, table, digest, batch, reranker, maps or MAPS[0], problems, embedded)
                bar.update(len(batch))
        if given <= problems.keys() or table is None:
            raise InputError("; ".join(["no photo could be read", *list(problems.values())[:3]]))
        with writing(index):
            if removed:
                quoted = ("'" + path.replace("'", "''") + "'" for path in as_text(removed))
                table.delete(f"path IN ({', '.join(quoted)})")
            unknown = 0 if described is None else add_metadata(table, described)
            recall = keep_up(index, table, bool(embedded or removed))
        new = (old.keys() | embedded) - set(removed)
        return Update(
            photos=len(new),
            added=len(embedded) - len(old.keys() & embedded),
            updated=len(old.keys() & embedded),
            removed=len(removed),
            kept=len(new & problems.keys()),
            not_given=len(new - given),
            problems=list(problems.values()),
            unknown=unknown,
            recall=recall,
        )


def _alone(index: Address) -> AbstractContextManager:
    """Hold the lock of an index in a folder; InputError where the folder is of something else."""
    if not is_folder(index):
        return nullcontext()
    folder = Path(index)
    if folder.is_dir() and not (folder / "index.json").exists() and not all(map(is_own, folder.iterdir())):
        raise InputError(f"{index} has files that are not an index's: choose a new folder")
    return exclusive_lock(folder / ".lock", str(index), "wait for it, or choose another folder")


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


def _with_batch(
    index: Address,
    table: "Table | None",
    digest: str,
    photos: Sequence[Photo],
    reranker: Reranker,
    maps: str,
    problems: dict[str, str],
    embedded: list[str],
) -> "Table | None":
    """The table with those photos that can be read; `embedded` gets their paths, `problems` the others'."""
    features, unread = embed([photo.path for photo in photos], reranker)
    problems |= unread
    photos = [photo for photo in photos if photo.path not in unread]
    if not photos:
        return table
    if table is None:  # a model of an interrupted call may be there, and may be another one
        save_model(index, reranker)
    table = write(index, table, digest, photos, features, maps)
    embedded += [photo.path for photo in photos]
    return table


def _check_removal(index: Address, before: Sequence[Photo], removed: Sequence[str]) -> None:
    """Raise InputError where many photos would be removed, or any of a folder that is empty now."""
    parents = {Path(path).parent for path in removed}
    empty = sorted({str(nearest) for nearest in map(_nearest_existing, parents) if _is_empty(nearest)})
    if len(removed) > MAX_REMOVED * len(before) or empty:
        raise InputError(
            f"{len(removed)} of the {len(before)} photos of {index} are not among those given"
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
