"""An index of photos, in a folder or below the address of an object store:

* `photos.lance`: a table of LanceDB with a row for each photo: Photo's columns, `descriptor` (float32), `map` as
  `rrt.map_codes` encodes it, and columns of metadata. Its schema tells `Content`.
* `model`: the network, as `Reranker.save_pretrained` writes it.

The table has versions. Each write is a new one, or none: readers keep theirs.
"""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from rrt.features import Features
from rrt.map_codes import encode
from rrt.photos import is_hidden
from rrt.pretrained import CARD, CONFIG, WEIGHTS, load
from rrt.reranker import Reranker
from rrt.words import MAPS
from utils.errors import InputError
from utils.retrieval.fitted import FittedWeights

if TYPE_CHECKING:
    import pyarrow as pa
    from lancedb.table import Table

Address = str | os.PathLike
FORMAT = 3  # 1 and 2 were folders of numpy's files
TABLE = "photos"
KEY = b"rrt"  # in the schema's metadata
BYTES = {0xDC00 + byte: 0xF700 + byte for byte in range(128, 256)}  # of names that are no UTF-8, which Arrow wants
TO_BYTES = {stored: byte for byte, stored in BYTES.items()}


class Photo(NamedTuple):
    """A photo as it was embedded."""

    path: str
    size: int  # bytes
    mtime: int  # ns since 1970, as `utils.io.disk.stamp` has them
    ctime: int

    @property
    def stamp(self) -> tuple[int, int, int]:
        """As `utils.io.disk.stamp` makes it: another file of the same name has another stamp."""
        return self[1:]


class Content(NamedTuple):
    """What the table's schema tells."""

    format: int
    model: str  # digest
    map_shape: list[int]
    maps: str = MAPS[0]  # their kind; tables of before do not tell it


def engine() -> Any:
    """LanceDB, which takes a second to import."""
    try:
        return import_module("lancedb")
    except ModuleNotFoundError as error:
        raise InputError(
            "an index needs lancedb: pip install '.[search]' in the clone, or pip install lancedb"
        ) from error


def is_folder(index: Address) -> bool:
    """Whether an index is on this machine's disk, and not below the address of an object store."""
    return "://" not in str(index)


def open_table(index: Address) -> "Table | None":
    """The table of an index, None where there is none; InputError where it is damaged, or of another version."""
    if is_folder(index):
        if Path(index, "index.json").exists():
            raise InputError(
                f"{index} is an index of an older version: `python -m rrt index PHOTOS... --to NEW --model "
                f"{Path(index, 'model')}` makes a new one"
            )
        if not Path(index, f"{TABLE}.lance").is_dir():
            return None
    with reported(f"{index} cannot be opened", "index again into a new folder"):
        database = engine().connect(str(index))
        if not is_folder(index) and TABLE not in database.list_tables().tables:
            return None
        table = database.open_table(TABLE)
        if content_of(table).format != FORMAT:
            raise InputError(
                f"{index} is of version {content_of(table).format}, not {FORMAT}: index again into a new folder"
            )
    return table


def existing_table(index: Address) -> "Table":
    """InputError where there is no index."""
    table = open_table(index)
    if table is None:
        raise InputError(f"{index} is no index: `python -m rrt index PHOTOS... --to {index}` makes one")
    return table


def content_of(table: "Table") -> Content:
    return Content(**json.loads((table.schema.metadata or {})[KEY]))


def write(
    index: Address,
    table: "Table | None",
    model: str,
    photos: Sequence[Photo],
    features: Features,
    maps: str = MAPS[0],
) -> "Table":
    """Add or replace photos in one version; makes the table of a new index, whose network's digest is `model`.

    A new index keeps `maps` of that kind. InputError, with the photo, for a map that cannot be kept.
    """
    import pyarrow as pa

    columns: dict[str, Any] = dict(zip(Photo._fields, map(list, zip(*photos, strict=True)), strict=True))
    columns["path"] = as_text(columns["path"])
    kind = maps if table is None else content_of(table).maps
    encoded = encode(features.maps, kind, [photo.path for photo in photos])
    for name, values in (("descriptor", features.descriptors.numpy()), ("map", encoded)):
        columns[name] = pa.FixedSizeListArray.from_arrays(values.ravel(), values.shape[1])
    rows = pa.table(columns)
    with writing(index):
        if table is None:
            content = Content(FORMAT, model, list(features.maps.shape[1:]), kind)
            rows = rows.replace_schema_metadata({KEY: json.dumps(content._asdict())})
            return engine().connect(str(index)).create_table(TABLE, rows)
        table.merge_insert("path").when_matched_update_all().when_not_matched_insert_all().execute(rows)
    return table


def as_text(paths: Iterable[str]) -> list[str]:
    """Paths as the table has them, in UTF-8."""
    return [path.translate(BYTES) for path in paths]


def photos_in(table: "Table") -> list[Photo]:
    """All photos of an index."""
    return photos_of(table.search().select([*Photo._fields]).to_arrow())


def photos_of(rows: "pa.Table") -> list[Photo]:
    columns = [rows[name].to_pylist() for name in Photo._fields]
    return [Photo(path.translate(TO_BYTES), *stamp) for path, *stamp in zip(*columns, strict=True)]


def array_of(rows: "pa.Table", name: str) -> np.ndarray:
    """A column of vectors, (n, d)."""
    column = rows[name].combine_chunks()
    return column.flatten().to_numpy().reshape(len(rows), column.type.list_size)


@contextmanager
def reported(problem: str, advice: str) -> Iterator[None]:
    """Turn the engine's errors, which are of all kinds, into InputError."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{problem} ({str(error).partition(chr(10))[0]}): {advice}") from error


def writing(index: Address) -> AbstractContextManager:
    advice = "make room and run the command again, which goes on from the photos that are kept"
    return reported(f"{index} could not be written to", advice)


def save_model(index: Address, reranker: Reranker) -> None:
    if is_folder(index):
        reranker.save_pretrained(Path(index, "model"))
        return
    with TemporaryDirectory() as folder, writing(index):
        reranker.save_pretrained(folder)
        fs = import_module("pyarrow.fs")
        store, path = fs.FileSystem.from_uri(f"{index}/model")
        store.create_dir(path)
        fs.copy_files(folder, path, destination_filesystem=store)


def own_reranker(index: Address, model: str, device: torch.device | str | None = None) -> Reranker:
    """The network of an index, whose digest is `model`; InputError where it is damaged or missing."""
    damaged = InputError(
        f"{index}/model is damaged or missing: `python -m rrt index PHOTOS... --to {index} --model MODEL` writes it "
        "again, where MODEL is the one that made the index; embedded photos are kept"
    )
    try:
        with TemporaryDirectory() as folder:
            if is_folder(index):
                folder = str(Path(index, "model").absolute())  # a relative path may name a repository of the hub
            else:
                import_module("pyarrow.fs").copy_files(f"{index}/model", folder)
            reranker = Reranker(*load(folder, None, {}), device=device)
    except (InputError, OSError) as error:
        raise damaged from error
    if reranker.digest() != model:
        raise damaged
    return reranker


def has_model(index: Address, model: str, fusion: FittedWeights | None) -> bool:
    """Whether the network of an index is intact, and has these weights of its ranking."""
    try:
        return own_reranker(index, model, "cpu").fusion == fusion
    except InputError:
        return False


def is_own(path: Path) -> bool:
    """Whether a file or folder belongs to an index, or is hidden."""
    if path.name == "model" and path.is_dir():
        return all(child.name in (CONFIG, WEIGHTS, CARD) or is_hidden(child.name) for child in path.iterdir())
    return path.name == f"{TABLE}.lance" or is_hidden(path.name)
