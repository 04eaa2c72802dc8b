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

# Any other kind is refused: Pillow, which goes by a file's content, would run Ghostscript on EPS.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "PPM", "AVIF")  # MPO is JPEG
GREYS_OF_16_BITS = ("I;16", "I;16B", "I;16L", "I;16N")  # PIL's modes
GREYS_OF_32_BITS = ("I", "F")


@contextmanager
def opened(path: Path, if_missing: str = "check the path") -> Iterator[ImageFile]:
    """A photo as PIL opens it: its pixels are read later. InputError, with its name, for what is none, and with the
    advice `if_missing` where there is nothing."""
    with naming(path, if_missing):
        if not stat.S_ISREG(path.stat().st_mode):
            raise InputError(f"photo {path} is a folder, a pipe or a device: take it out of the list")
        photo = Image.open(path, formats=FORMATS)
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


def to_rgb(photo: Image.Image, upright: bool = False) -> Image.Image:
    """The photo in RGB, on white where it is transparent; one that is so already is not copied.

    `upright` turns it, itself, as its EXIF says. Greys of 16 bits are scaled to 8. InputError, with the photo's name,
    for one that is damaged, and for greys whose white is not known.
    """
    name = getattr(photo, "filename", "")
    with naming(name):
        photo.load()
        if upright:
            with suppress(Exception):  # damaged EXIF turns nothing
                ImageOps.exif_transpose(photo, in_place=True)
        if photo.mode in GREYS_OF_16_BITS and _white_is_65535(photo):
            greys = np.asarray(photo, np.uint32)
            greys = np.where(greys == photo.info.get("transparency", -1), 65535, greys)
            photo = Image.fromarray(((greys + 128) // 257).astype(np.uint8))
        elif photo.mode in GREYS_OF_16_BITS + GREYS_OF_32_BITS:
            raise InputError(f"photo {name} has greys that are not of 8 or 16 bits: save it with 8 bits")
        if photo.has_transparency_data:
            white = Image.new("RGBA", photo.size, "white")
            return Image.alpha_composite(white, photo.convert("RGBA")).convert("RGB")
        return photo if photo.mode == "RGB" else photo.convert("RGB")


def thumbnail(path: Path, side: int, upright: bool = False) -> Image.Image:
    """A photo in RGB, with `side` pixels at most on its longer side, or `upright`, turned as its EXIF says.

    InputError where it cannot be read.
    """
    with opened(path) as photo, naming(path):
        photo.draft("RGB", (2 * side, 2 * side))
        small = to_rgb(photo, upright)
        small.thumbnail((side, side))
        return small


def jpeg(image: Image.Image, quality: int) -> str:
    """An image as a JPEG in base64."""
    content = io.BytesIO()
    image.save(content, "JPEG", quality=quality, comment=b"")
    return base64.b64encode(content.getvalue()).decode()


@contextmanager
def naming(path: Path | str, if_missing: str = "check the path") -> Iterator[None]:
    """Turn what PIL raises for a photo into an InputError that names it, with the advice `if_missing`."""
    try:
        yield
    except ReportedError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"photo {path} does not exist: {if_missing}") from error
    except Exception as error:  # a damaged photo makes PIL raise anything
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise InputError(f"photo {path} cannot be read ({reason}): replace it or take it out of the list") from error


def _white_is_65535(photo: Image.Image) -> bool:
    """Whether greys of 16 bits fill their range: those of a TIFF may have 12 bits, or 65535 for black."""
    tags = getattr(photo, "tag_v2", None)
    return tags is None or (tags.get(Base.BitsPerSample), tags.get(Base.PhotometricInterpretation)) == ((16,), 1)
