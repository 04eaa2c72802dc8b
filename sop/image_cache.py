"""Test images kept in a file: decoded and resized once, then read from a memory map (`dataset.image_cache`).

The file holds a SHA-256 sum of all that its pixels follow from, then uint8 pixels (images, 3, side, side).
"""

import hashlib
import math
import shutil
from pathlib import Path

import numpy as np
import PIL
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from sop.dataset import ImageSet, photo_sum
from sop.splits import Split
from sop.transforms import centre_crop, square_size, square_transform, test_transform
from utils.errors import InputError
from utils.files import atomic_write

SUM_BYTES = hashlib.sha256().digest_size


class CachedImageSet(ImageSet):
    """What an `ImageSet` with the test transform yields, from the file `cache`; `prepare` comes first."""

    def __init__(
        self, folder: Path | str, split: Split, labels: dict[int, int], crop_size: int, decode: str, cache: Path
    ):
        super().__init__(folder, split, labels, test_transform(crop_size, decode))
        self.photos = ImageSet(folder, split, labels, square_transform(crop_size, decode))
        self.cache, self.decode, self.crop = cache, decode, centre_crop(crop_size)
        self.shape = (len(self.paths), 3, square_size(crop_size), square_size(crop_size))
        self.pixels: np.memmap | None = None  # opened by the process that reads

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:  # type: ignore[override]
        if self.pixels is None:
            self.pixels = np.memmap(self.cache, np.uint8, "r", SUM_BYTES, self.shape)
        pixels = np.array(self.pixels[index, :, self.crop, self.crop])
        return torch.from_numpy(pixels), int(self.labels[index]), index

    def prepare(self, batch_size: int | None, num_workers: int) -> None:
        """Make the file, unless there is one of just these photos, list and settings.

        Raises InputError for a photo that is missing or unreadable, and where the file cannot be written.
        """
        expected, size = self._sum(), math.prod(self.shape)
        found = _read_sum(self.cache, SUM_BYTES + size)
        if found == expected:
            return
        _check_room(self.cache, size)
        change = "" if found is None else " anew: photos, list or settings have changed"
        tqdm.write(f"image cache {self.cache} ({size / 1e9:.1f} GB) is made{change}")
        loader = DataLoader(self.photos, batch_size, num_workers=num_workers)
        with (
            atomic_write(self.cache) as file,
            tqdm(desc="Caching images", total=len(self), unit="image") as progress,
        ):
            file.write(expected)
            for squares, _, _ in loader:
                file.write(squares.numpy())
                progress.update(len(squares))

    def _sum(self) -> bytes:
        """The sum of the photos' paths, sizes and times, and of what else decides about the pixels."""
        photos = photo_sum(self.folder, self.paths)
        settings = (self.shape, self.decode, PIL.__version__, torch.__version__)
        return hashlib.sha256(repr((photos, settings)).encode()).digest()


class CachedLoader(DataLoader):
    """A loader of a `CachedImageSet` that has the file made when images are first asked for, by as many workers."""

    prepared = False

    def __iter__(self):
        if not self.prepared:
            self.dataset.prepare(self.batch_size, self.num_workers)
            self.prepared = True
        return super().__iter__()


def _read_sum(cache: Path, size: int) -> bytes | None:
    """What a file of `size` bytes begins with; empty for a file of another size, None where there is none."""
    if not cache.is_file():
        return None
    with cache.open("rb") as file:
        return file.read(SUM_BYTES) if cache.stat().st_size == size else b""


def _check_room(cache: Path, size: int) -> None:
    folder = cache.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise InputError(
            f"dataset.image_cache={folder} cannot be a folder: {error.strerror}; choose another"
        ) from error
    if free < size:
        raise InputError(
            f"image cache {cache} needs {size / 1e9:.1f} GB, but {free / 1e9:.1f} GB are free: make room, or set "
            "dataset.image_cache to a folder on another disk"
        )
