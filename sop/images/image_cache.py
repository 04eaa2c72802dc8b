"""Cache of test images: decoded and resized once, then read from a memory map (`dataset.image_cache`).

The file has a SHA-256 digest of all that determines its pixels, uint8 pixels (images, 3, side, side), and a CRC-32 for
each image. Its name has the digest's first digits; files of other photos, lists or settings lie beside it.
"""

import hashlib
import math
import os
import re
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import PIL
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from sop.dataset import ImageSet, photo_digest
from sop.images.transforms import CROP_FRACTION, centre_crop, square_size, square_transform, test_transform
from sop.splits import Split
from utils.distributed.collectives import local_rank0_first
from utils.errors import InputError
from utils.io.atomic import atomic_write
from utils.io.disk import check_disk_space
from utils.runtime.signals import die_with_parent

DIGEST_BYTES = hashlib.sha256().digest_size
BATCH_SIZE = 64  # photos that a worker decodes at a time
DIGITS = 12  # of the digest, in the file's name


class CachedImageSet(ImageSet):
    """An `ImageSet` with the test transform, read from the file `<cache>.<digits of the digest>.images`.

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
        interpolation: str = "bilinear",
        crop_fraction: float = CROP_FRACTION,
    ):
        super().__init__(folder, split, labels, test_transform(crop_size, decode, interpolation, crop_fraction))
        squares = square_transform(crop_size, decode, interpolation, crop_fraction)
        self.photos = ImageSet(folder, split, labels, squares)
        self.cache, self.decode, self.crop = cache, decode, centre_crop(crop_size, crop_fraction)
        side = square_size(crop_size, crop_fraction)
        self.shape = (len(self.paths), 3, side, side)
        self.digest = b""
        self.size = DIGEST_BYTES + math.prod(self.shape) + 4 * len(self)
        self.pixels: np.memmap | None = None  # opened by the process that reads
        self.checks = np.empty(0, np.uint32)  # the CRCs, in little-endian order

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:  # type: ignore[override]
        if self.pixels is None and not self._open():
            raise InputError(f"image cache {self.file} is gone, or is another file by now: run the command again")
        square = np.array(self.pixels[index])  # type: ignore[index]
        if zlib.crc32(square.data) != self.checks[index]:
            raise InputError(f"image cache {self.file} is damaged at photo {self.paths[index]}: delete it")
        return torch.from_numpy(square[:, self.crop, self.crop].copy()), int(self.labels[index]), index

    @property
    def file(self) -> Path:
        """The file for the photos, list and settings at the time of `prepare`."""
        return self.cache.with_name(f"{self.cache.name}.{self.digest.hex()[:DIGITS]}.images")

    def prepare(self, batch_size: int | None, num_workers: int, timeout: float = 0) -> None:
        """Make the file, unless there is one for these photos, list and settings; `timeout` is the loader's, in s.

        Raises InputError for a photo that is missing or unreadable, or changes meanwhile, and where the file cannot be
        written.
        """
        self.pixels, self.digest = None, self._digest()
        if self._open():
            return
        check_disk_space({self.file.parent: self.size}, f"image cache {self.file.name}")
        change = " anew: it was damaged" if self.file.exists() else ""
        tqdm.write(f"image cache {self.file} ({self.size / 1e9:.1f} GB) is made{change}")
        options: dict = {"num_workers": num_workers, "timeout": timeout, "worker_init_fn": die_with_parent}
        loader = DataLoader(self.photos, batch_size, **options)
        with (
            atomic_write(self.file) as file,
            tqdm(desc="Caching images", total=len(self), unit="image") as progress,
        ):
            file.write(bytes(DIGEST_BYTES))
            checks: list[int] = []
            for squares, _, _ in loader:
                file.write(squares.numpy())
                checks += map(zlib.crc32, squares.numpy())
                progress.update(len(squares))
            file.write(np.array(checks, "<u4").tobytes())
            if self._digest() != self.digest:
                raise InputError(f"photos in {self.folder} have changed while they were cached: run the command again")
            file.seek(0)
            file.write(self.digest)
        self._report_others()

    def _open(self) -> bool:
        """Open the file if it exists, is complete, and has the right digest; InputError if it cannot be read."""
        try:
            with self.file.open("rb") as file:
                is_whole = os.fstat(file.fileno()).st_size == self.size
                if is_whole and file.read(DIGEST_BYTES) == self.digest:
                    self.pixels = np.memmap(file, np.uint8, "r", DIGEST_BYTES, self.shape)
                    file.seek(DIGEST_BYTES + math.prod(self.shape))
                    self.checks = np.frombuffer(file.read(4 * len(self)), "<u4")
                    return True
        except FileNotFoundError:
            pass
        except OSError as error:
            raise InputError(
                f"image cache {self.file} cannot be read: {error.strerror or error}; choose another folder for "
                "dataset.image_cache"
            ) from error
        return False

    def _report_others(self) -> None:
        name = re.compile(rf"{re.escape(self.cache.name)}(\.[0-9a-f]{{{DIGITS}}})?\.images")
        with suppress(OSError), os.scandir(self.cache.parent) as files:  # others may be deleted meanwhile
            sizes = [file.stat().st_size for file in files if name.fullmatch(file.name) and file.name != self.file.name]
            if sizes:
                tqdm.write(
                    f"image caches of {self.cache.name} for other photos or settings in {self.cache.parent}: "
                    f"{len(sizes)}, {sum(sizes) / 1e9:.1f} GB; those that no run needs any more can be deleted"
                )

    def _digest(self) -> bytes:
        """The digest of the photos' paths, sizes and times, and of all settings that determine the pixels."""
        photos = photo_digest(self.folder, self.paths)
        resizing = self.photos.transform.keywords.items()  # type: ignore[attr-defined]
        settings = ("with CRC-32", self.shape, self.decode, PIL.__version__, torch.__version__, *resizing)
        return hashlib.sha256(repr((photos, settings)).encode()).digest()


class CachedLoader(DataLoader):
    """A loader of a `CachedImageSet` that calls `prepare`, with as many workers, before each pass."""

    def __iter__(self):
        with local_rank0_first():
            self.dataset.prepare(self.batch_size or BATCH_SIZE, self.num_workers, self.timeout)
        return super().__iter__()
