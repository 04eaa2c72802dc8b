"""Datasets of the images that split files list."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from sop.images.photo import opened
from sop.images.transforms import Transform, describe
from sop.splits import Split
from utils.errors import InputError
from utils.io.disk import stamp

IF_MISSING = "run prepare_data.py, or set dataset.data_path"  # advice for a photo


class Draw(NamedTuple):
    """An image to load, and the key that seeds its random transform: (seed, epoch, position in the epoch)."""

    image: int
    key: tuple[int, int, int]


def photo_digest(folder: Path, paths: Sequence[str]) -> str:
    """The SHA-256 digest, in hexadecimal, of photos' paths, sizes and times; InputError if a photo is missing."""
    content = hashlib.sha256()
    for path in paths:
        try:
            content.update(repr((path, stamp(folder / path))).encode())
        except OSError as error:
            raise InputError(f"photo {folder / path} cannot be read ({error.strerror}): {IF_MISSING}") from error
    return content.hexdigest()


def size_of(path: Path) -> int:
    """The size of a file in bytes, -1 if it is missing."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


class ImageSet(Dataset):
    """The images of a split as `(pixels, label, index)`; `transform` turns an opened photo into pixels.

    An item is indexed by its number, or by a `Draw`, whose key seeds the random transform.
    """

    def __init__(self, folder: Path | str, split: Split, labels: dict[int, int], transform: Transform):
        self.folder, self.transform = Path(folder), transform
        self.paths, self.classes = split
        self.labels = np.array([labels[number] for number in split.classes])

    def __len__(self) -> int:
        return len(self.paths)

    def fingerprint(self) -> dict[str, str]:
        """All that determines the pixels: photos and transform. InputError if a photo is missing."""
        return {"photos": photo_digest(self.folder, self.paths), "transform": describe(self.transform)}

    def sizes(self) -> list[int]:
        """The sizes of the photos in bytes, -1 for a missing one."""
        return [size_of(self.folder / path) for path in self.paths]

    def unreadable(self) -> list[str]:
        """The paths of unreadable photos that were replaced."""
        return []

    def __getitem__(self, item: int | Draw) -> tuple[Any, int, int]:
        index, key = item if isinstance(item, Draw) else (item, None)
        with opened(self.folder / self.paths[index], IF_MISSING) as photo, _seeded_by(key):
            return self.transform(photo), int(self.labels[index]), index


class SkippingImageSet(ImageSet):
    """Training images; an unreadable one is replaced by another image of its class, drawn with the key of the draw.

    InputError if no image of the class can be read.
    """

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.is_unreadable = torch.zeros(len(self), dtype=torch.bool).share_memory_()  # written by the loader's workers

    def __getitem__(self, draw: Draw) -> tuple[Any, int, int]:  # type: ignore[override]
        try:
            return super().__getitem__(draw)
        except InputError as error:
            self.is_unreadable[draw.image] = True
            others = np.flatnonzero(self.labels == self.labels[draw.image])
            for other in np.random.default_rng(draw.key).permutation(others[others != draw.image]).tolist():
                with suppress(InputError):
                    return super().__getitem__(Draw(other, draw.key))
                self.is_unreadable[other] = True
            raise InputError(f"{error}; no other photo of its class can be read") from error

    def unreadable(self) -> list[str]:
        return [self.paths[image] for image in self.is_unreadable.nonzero().flatten().tolist()]


def collate_shard(items: list) -> tuple[Tensor, Tensor, Tensor]:
    """Collate a rank's shard of a batch, which may be empty."""
    empty = torch.empty(0, dtype=torch.int64)
    return default_collate(items) if items else (torch.empty(0, 3, 1, 1, dtype=torch.uint8), empty, empty)


@contextmanager
def _seeded_by(key: Sequence[int] | None) -> Iterator[None]:
    """In the block torch's CPU generator is seeded by `key`; its state is restored afterwards."""
    if key is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))
        yield
