"""Photos as files: opened, read and brought to RGB, or refused by name."""

import base64
import io
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from PIL.ExifTags import Base
from PIL.ImageFile import ImageFile

from utils.errors import InputError, ReportedError

GREYS_OF_16_BITS = ("I;16", "I;16B", "I;16L", "I;16N")  # PIL's modes
GREYS_OF_32_BITS = ("I", "F")


@contextmanager
def opened(path: Path) -> Iterator[ImageFile]:
    """A photo as PIL opens it: its pixels are read later. InputError, with its name, for what is none."""
    with naming(path):
        if not stat.S_ISREG(path.stat().st_mode):
            raise InputError(f"photo {path} is a folder, a pipe or a device: take it out of the list")
        photo = Image.open(path)
        photo.getbands()  # fails where a damaged header names an unknown mode
    with photo:
        most = Image.MAX_IMAGE_PIXELS  # PIL warns above it, and refuses twice as many: it may be a decompression bomb
        if most and photo.width * photo.height > most:
            raise InputError(f"photo {path} has {photo.width} x {photo.height} pixels, more than {most:,}: resize it")
        yield photo


def file_content(photo: ImageFile) -> bytes:
    """The bytes of an opened photo's file; InputError, with its name, where they cannot be read."""
    with naming(str(photo.filename)):
        photo.fp.seek(0)  # type: ignore[union-attr]
        return photo.fp.read()  # type: ignore[union-attr]


def to_rgb(photo: Image.Image) -> Image.Image:
    """The photo in RGB; one that is so already is not copied. Greys of 16 bits are scaled to 8.

    InputError, with the photo's name, for one that is damaged, and for greys whose white is not known.
    """
    name = getattr(photo, "filename", "")
    with naming(name):
        photo.load()
        if photo.mode in GREYS_OF_16_BITS and _white_is_65535(photo):
            photo = Image.fromarray(((np.asarray(photo, np.uint32) + 128) // 257).astype(np.uint8))
        elif photo.mode in GREYS_OF_16_BITS + GREYS_OF_32_BITS:
            raise InputError(f"photo {name} has greys that are not of 8 or 16 bits: save it with 8 bits")
        photo.info.pop("transparency", None)  # PIL would warn of some that RGB has none
        return photo if photo.mode == "RGB" else photo.convert("RGB")


def thumbnail(path: Path, side: int, upright: bool = False) -> Image.Image:
    """A photo in RGB, with `side` pixels at most on its longer side, or `upright`, turned as its EXIF says.

    InputError where it cannot be read.
    """
    with opened(path) as photo, naming(path):
        photo.draft("RGB", (2 * side, 2 * side))
        small = to_rgb(photo)
        small.thumbnail((side, side))
        if upright:
            with suppress(Exception):  # damaged EXIF turns nothing
                return ImageOps.exif_transpose(small)  # while the file is open: a TIFF's EXIF is read now
        return small


def jpeg(image: Image.Image, quality: int) -> str:
    """An image as a JPEG in base64."""
    content = io.BytesIO()
    image.save(content, "JPEG", quality=quality, comment=b"")
    return base64.b64encode(content.getvalue()).decode()


@contextmanager
def naming(path: Path | str) -> Iterator[None]:
    """Turn what PIL raises for a photo into an InputError that names it."""
    try:
        yield
    except ReportedError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"photo {path} does not exist: run prepare_data.py, or set dataset.data_path") from error
    except Exception as error:  # a damaged photo makes PIL raise anything
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise InputError(f"photo {path} cannot be read ({reason}): replace it or take it out of the list") from error


def _white_is_65535(photo: Image.Image) -> bool:
    """Whether greys of 16 bits fill their range: those of a TIFF may have 12 bits, or 65535 for black."""
    tags = getattr(photo, "tag_v2", None)
    return tags is None or (tags.get(Base.BitsPerSample), tags.get(Base.PhotometricInterpretation)) == ((16,), 1)
