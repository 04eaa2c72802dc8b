"""Cache of test images: decoded and resized once, then read from the disk (`dataset.image_cache`).

Each list of photos with its settings has a `Store` of its own: a folder of uint8 squares (images, 3, side, side).
"""

import hashlib
import re
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
import PIL
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from sop.dataset import ImageSet
from sop.images.transforms import PUBLISHED, Resizing, square_transform, test_transform
from sop.splits import Split
from utils.distributed.collectives import local_rank0_first
from utils.errors import InputError
from utils.io.lock import exclusive_lock
from utils.runtime.signals import die_with_parent
from utils.store.store import Store

DIMS = {"squares": 4}
BATCH_SIZE = 64  # photos that a worker decodes at a time
DIGITS = 12  # of the digest of photos and settings, in the folder's name


class CachedImageSet(ImageSet):
    """An `ImageSet` with the test transform, read from the store `<cache>.<digits of the digest>`.

    Call `prepare` first.
    """

    def __init__(
        self,
        folder: Path | str,
        split: Split,
        labels: dict[int, int],
        crop_size: int,
        decode: str,
        cache: Path,
        resizing: Resizing = PUBLISHED,
    ):
        super().__init__(folder, split, labels, test_transform(crop_size, decode, resizing))
        squares = square_transform(crop_size, decode, resizing)
        self.photos = ImageSet(folder, split, labels, squares)
        self.cache, self.crop = cache, resizing.centre_crop(crop_size)
        self.made_with: dict[str, str] = {}
        self.is_cached = False
        self.squares: np.memmap | None = None  # opened by the process that reads

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:  # type: ignore[override]
        if not self.is_cached:
            return super().__getitem__(index)
        if self.squares is None:
            store = self._store()
            if store.count_valid_rows(DIMS) < len(self):
                raise InputError(f"image cache {store.folder} is gone or damaged by now: run the command again")
            self.squares = np.load(store.paths["squares"], mmap_mode="r")
        pixels = self.squares[index, :, self.crop, self.crop].copy()
        return torch.from_numpy(pixels), int(self.labels[index]), index

    def prepare(self, batch_size: int | None, num_workers: int, timeout: float = 0) -> None:
        """Complete the store of these photos, list and settings; `timeout` is the loader's, in s.

        Where it cannot be written, as when another process does, a line says so and photos are decoded. InputError for
        a photo that is missing or unreadable, and where the disk is full.
        """
        self.squares = None
        self.made_with = self.photos.fingerprint() | {
            "versions": f"Pillow {PIL.__version__}, torch {torch.__version__}"
        }
        store = self._store()
        self.is_cached = store.count_valid_rows(DIMS) == len(self)
        if self.is_cached:
            return
        with ExitStack() as stack:
            lock = exclusive_lock(store.folder / ".lock", str(store.folder), "photos are decoded without it")
            try:
                stack.enter_context(lock)
            except InputError as error:
                tqdm.write(f"images are not cached: {error}")
                return
            store.load()  # what another process may have written meanwhile
            start = store.count_valid_rows(DIMS)
            tqdm.write(f"image cache {store.folder} is made" + (f" from image {start} on" if start else ""))
            images = Subset(self.photos, range(start, len(self)))
            options: dict = {"num_workers": num_workers, "timeout": timeout, "worker_init_fn": die_with_parent}
            loader = tqdm(DataLoader(images, batch_size, **options), "Caching images", unit="batch")
            store.write(start, ([squares] for squares, _, _ in loader))
        self.is_cached = True
        self._report_others(store.folder)

    def _store(self) -> Store:
        digest = hashlib.sha256(repr(self.made_with).encode()).hexdigest()
        folder = self.cache.with_name(f"{self.cache.name}.{digest[:DIGITS]}")
        return Store(folder, DIMS, len(self), self.made_with)

    def _report_others(self, folder: Path) -> None:
        name = re.compile(rf"{re.escape(self.cache.name)}\.[0-9a-f]{{{DIGITS}}}")
        with suppress(OSError):  # others may be deleted meanwhile
            others = [path for path in folder.parent.iterdir() if name.fullmatch(path.name) and path != folder]
            size = sum(file.stat().st_size for other in others for file in other.iterdir()) / 1e9
            if others:
                told = f"image caches of {self.cache.name} for other photos or settings in {folder.parent}"
                tqdm.write(f"{told}: {len(others)}, {size:.1f} GB; those that no run needs any more can be deleted")


class CachedLoader(DataLoader):
    """A loader of a `CachedImageSet` that calls `prepare`, with as many workers, before each pass."""

    def __iter__(self):
        with local_rank0_first():
            self.dataset.prepare(self.batch_size or BATCH_SIZE, self.num_workers, self.timeout)
        return super().__iter__()
