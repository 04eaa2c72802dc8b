"""An index of photos: a folder with the network, and descriptors and local maps of each photo.

* `model`: the network, as `Reranker.save_pretrained` writes it,
* `part_N`: a store (`utils.store`) of up to PART photos that were embedded together,
* `index.json`: `format`, the network's sum as `model`, the numbers of photos of `parts`, the number of the `next` part,
  and the `photos`: path, size, time of change, part and row.

`index.json` is replaced whole, after what it tells of is on the disk: an interrupt costs the part that is being made.
No number of a part comes twice, so that who searches meanwhile finds a part as it was, or none.
"""

import json
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from rrt.pretrained import CONFIG, WEIGHTS
from rrt.reranker import Features, Fusion, Reranker
from utils.errors import InputError
from utils.features import DIMS
from utils.files import atomic_write, only_writer
from utils.rows import StoredRows
from utils.store import Store

FORMAT = 1
OPEN_PARTS = 256  # files at a time
PART = 256  # photos; an interrupt costs no more. Maps of 128 x 7 x 7 take 6 MB
OWN_FOLDERS = re.compile(r"model|part_\d+")
OWN_FILES = ("index.json", "store.json", *(f"{name}.npy" for name in DIMS), CONFIG, WEIGHTS)


class Photo(NamedTuple):
    """A photo as it was embedded."""

    path: str
    size: int  # bytes
    changed: int  # in ns since 1970
    part: int
    row: int


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
    removed: int
    problems: list[str]


class Found(NamedTuple):
    """A photo of the index, for a query; without reranking there is no logit, and the cosine is the score."""

    photo: str
    score: float | None  # None: behind the candidates that were rescored
    logit: float | None
    cosine: float


def update(folder: Path, paths: Iterable[Path], reranker: Reranker, progress: bool = False) -> Update:
    """Make the index in `folder` one of the photos `paths`: new and changed ones are embedded, others taken out.

    What was interrupted goes on. A photo that cannot be read is left out, and said. InputError where the index is of
    another network, is being written by another process or cannot be written, and where no photo can be read.
    """
    if folder.is_dir() and not all(map(_is_own, folder.iterdir())):
        raise InputError(f"{folder} has files that are not an index's: choose a new folder")
    with only_writer(folder / ".lock", str(folder), "wait for it, or choose another folder"):
        model = reranker.digest()
        before = read_content(folder) if (folder / "index.json").exists() else Content(model, {}, 0, [])
        if before.model != model:
            raise InputError(f"{folder} is an index of another network: choose another folder, or give its own")
        whole = {number for number, count in before.parts.items() if _is_whole(_part(folder, before, number), count)}
        stats, problems = _stats(paths)
        photos = [photo for photo in before.photos if stats.get(photo.path) == photo[1:3] and photo.part in whole]
        known = {photo.path for photo in photos}
        missing = [path for path in stats if path not in known]
        content = before._replace(parts={number: before.parts[number] for number in sorted(whole)}, photos=photos)
        with tqdm(total=len(missing), desc="Indexing", unit="photo", disable=not (progress and missing)) as shown:
            for start in range(0, len(missing), PART):
                names = missing[start : start + PART]
                content = _with_part(folder, content, names, stats, reranker, problems.append)
                shown.update(len(names))
        if not content.photos:
            raise InputError("; ".join(["no photo could be read", *problems[:3]]))
        used = {photo.part for photo in content.photos}
        content = content._replace(parts={number: content.parts[number] for number in sorted(used)})
        if content != read_content(folder):
            _write_content(folder, content)
        for path in folder.glob("part_*"):
            if int(path.name.removeprefix("part_")) not in used:
                shutil.rmtree(path, ignore_errors=True)
        added = len(content.photos) - len(photos)
        gone = {photo.path for photo in before.photos} - {photo.path for photo in content.photos}
        return Update(len(content.photos), added, len(gone), problems)


def read_content(folder: Path) -> Content:
    """What `index.json` of a folder holds; InputError where there is none, or one of another version."""
    file = folder / "index.json"
    if not file.is_file():
        raise InputError(f"{folder} is no index: `python -m rrt index PHOTOS... --to {folder}` makes one")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        found = content["format"]
        if found == FORMAT:
            parts = {int(number): int(count) for number, count in content["parts"]}
            photos = [Photo(str(path), *map(int, numbers)) for path, *numbers in content["photos"]]
            following = int(content["next"])
            if all(0 <= photo.row < parts[photo.part] for photo in photos) and max(parts, default=-1) < following:
                return Content(str(content["model"]), parts, following, photos)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} is damaged: delete the folder and index again") from error
    raise InputError(f"{folder} is an index of version {found!r}, not {FORMAT}: delete the folder and index again")


class Index:
    """An index that is searched, as it is now; `reranker` is its network. InputError where it is damaged."""

    def __init__(self, folder: Path, device: torch.device | str | None = None):
        self.folder, self.content = folder, read_content(folder)
        self.photos = self.content.photos
        if not self.photos:
            raise InputError(f"{folder} has no photos: index some")
        self.reranker = Reranker.from_pretrained(folder / "model", device=device)
        if self.reranker.digest() != self.content.model:
            raise InputError(f"{folder}/model is not the network that its photos were embedded with: index them again")
        self.parts = np.array([photo.part for photo in self.photos])
        self.rows = np.array([photo.row for photo in self.photos])
        of_parts = {number: self._rows_of(number, "descriptors")[:] for number in self.content.parts}
        self.descriptors = torch.stack([of_parts[photo.part][photo.row] for photo in self.photos])
        self._maps = lru_cache(OPEN_PARTS)(partial(self._rows_of, name="maps"))

    def _rows_of(self, part: int, name: str) -> StoredRows:
        """A tensor of a part, once it is found to be whole."""
        store = _part(self.folder, self.content, part)
        if store.whole_rows([name]) < self.content.parts[part]:
            if read_content(self.folder) != self.content:
                raise InputError(f"{self.folder} has been indexed again meanwhile: search again")
            raise InputError(f"{store.folder} is damaged: run `python -m rrt index` again, which makes it anew")
        return store.tensors[name]

    def search(self, queries: Features, top: int, rerank: int = 0, fusion: Fusion = None) -> list[list[Found]]:
        """The `top` photos for each query, best first: by cosine, the first `rerank` of them by `Reranker.rank`."""
        kept = min(max(top, rerank), len(self.photos))
        cosines, positions = (queries.descriptors @ self.descriptors.T).topk(kept)
        return [
            self._ranked(Features(*query), own_cosines, own_positions, rerank, fusion)[:top]
            for *query, own_cosines, own_positions in zip(
                queries.descriptors[:, None], queries.maps[:, None], cosines.tolist(), positions, strict=True
            )
        ]

    def _ranked(
        self, query: Features, cosines: list[float], positions: Tensor, rerank: int, fusion: Fusion
    ) -> list[Found]:
        names = [self.photos[position].path for position in positions.tolist()]
        if not rerank:
            return [Found(name, cosine, None, cosine) for name, cosine in zip(names, cosines, strict=True)]
        rescored = positions[:rerank]
        gallery = Features(self.descriptors[rescored], self._maps_of(rescored.numpy()))
        ranked = [
            Found(names[index], score, logit, cosine)
            for index, score, logit, cosine in self.reranker.rank(query, gallery, fusion=fusion)
        ]
        return ranked + [Found(name, None, None, cosine) for name, cosine in zip(names, cosines, strict=True)][rerank:]

    def _maps_of(self, positions: np.ndarray) -> Tensor:
        """The local maps of some photos."""
        parts, rows = self.parts[positions], self.rows[positions]
        maps = self._maps(int(parts[0])).room(len(positions))
        for number in np.unique(parts).tolist():
            own = np.flatnonzero(parts == number)
            own = own[rows[own].argsort()]
            stored = self._maps(number)
            maps[torch.from_numpy(own)] = stored.read(rows[own], stored.room(len(own)))
        return maps


def _is_own(path: Path) -> bool:
    """Whether something in the folder is an index's, or the system's, as hidden files are."""
    if path.is_dir():
        return (
            bool(OWN_FOLDERS.fullmatch(path.name))
            and not any(map(Path.is_dir, path.iterdir()))
            and all(map(_is_own, path.iterdir()))
        )
    return path.name in OWN_FILES or path.name.startswith(".")


def _stats(paths: Iterable[Path]) -> tuple[dict[str, tuple[int, int]], list[str]]:
    """Sizes and times of change by path, and what is wrong with the others."""
    stats, problems = {}, []
    for path in paths:
        try:
            stat = path.stat()
            stats[str(path)] = (stat.st_size, stat.st_mtime_ns)
        except OSError as error:
            problems.append(f"photo {path} cannot be read ({error.strerror})")
    return stats, problems


def _with_part(
    folder: Path,
    content: Content,
    names: Sequence[str],
    stats: dict[str, tuple[int, int]],
    reranker: Reranker,
    report: Callable[[str], None],
) -> Content:
    """The content with another part, of those of some photos that can be read."""

    def read(name: str) -> Tensor | InputError:
        try:
            return reranker.pixels(Path(name))
        except InputError as error:
            return error

    with ThreadPoolExecutor() as pool:
        read_ones = dict(zip(names, pool.map(read, names), strict=True))
    for pixels in read_ones.values():
        if isinstance(pixels, InputError):
            report(str(pixels))
    images = {name: pixels for name, pixels in read_ones.items() if isinstance(pixels, Tensor)}
    if not images:
        return content
    if not content.photos:  # a model without photos may be another one, of a call that was interrupted
        reranker.save_pretrained(folder / "model")
    number = content.next
    parts = content.parts | {number: len(images)}
    photos = [Photo(name, *stats[name], number, row) for row, name in enumerate(images)]
    content = Content(content.model, parts, number + 1, content.photos + photos)
    _part(folder, content, number).write(0, [reranker.embed_pixels(torch.stack(list(images.values())))])
    _write_content(folder, content)
    return content


def _part(folder: Path, content: Content, number: int) -> Store:
    return Store(folder / f"part_{number}", DIMS, content.parts[number], {"model": content.model})


def _is_whole(store: Store, count: int) -> bool:
    return store.whole_rows(DIMS) == count


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
