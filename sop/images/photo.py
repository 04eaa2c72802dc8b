"""Photo files: opening, reading and conversion to RGB; errors name the file."""

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

# Others raise: Pillow, which recognises formats by content, would run Ghostscript on EPS.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "PPM", "AVIF")  # MPO is JPEG
GREY_16_MODES = ("I;16", "I;16B", "I;16L", "I;16N")  # of PIL
GREY_32_MODES = ("I", "F")


@contextmanager
def opened(path: Path, if_missing: str = "check the path") -> Iterator[ImageFile]:
    """Open a photo with PIL, which reads the pixels later.

    InputError, with the path, if it is no photo; with the advice `if_missing` if it does not exist.
    """
    with naming(path, if_missing):
        if not stat.S_ISREG(path.stat().st_mode):
            raise InputError(f"photo {path} is a folder, a pipe or a device: take it out of the list")
        photo = Image.open(path, formats=FORMATS)
        photo.getbands()  # fails where a damaged header names an unknown mode
    with photo:
        limit = Image.MAX_IMAGE_PIXELS  # PIL warns above it, and raises above twice as many: a decompression bomb
        if limit and photo.width * photo.height > limit:
            raise InputError(f"photo {path} has {photo.width} x {photo.height} pixels, more than {limit:,}: resize it")
        yield photo


def file_content(photo: ImageFile) -> bytes:
    """The bytes of an opened photo's file; InputError, with the path, if they cannot be read."""
    with naming(str(photo.filename)):
        photo.fp.seek(0)  # type: ignore[union-attr]
        return photo.fp.read()  # type: ignore[union-attr]


def to_rgb(photo: Image.Image, upright: bool = False) -> Image.Image:
    """Convert a photo to RGB, on a white background if it is transparent; an RGB photo is returned itself.

    `upright` applies its EXIF orientation in place. 16-bit greys are scaled to 8 bits. InputError, with the path, for a
    damaged photo, and for greys whose white level is unknown.
    """
    name = getattr(photo, "filename", "")
    with naming(name):
        photo.load()
        if upright:
            with suppress(Exception):  # damaged EXIF is ignored
                ImageOps.exif_transpose(photo, in_place=True)
        if photo.mode in GREY_16_MODES and _white_is_65535(photo):
            greys = np.asarray(photo, np.uint32)
            greys = np.where(greys == photo.info.get("transparency", -1), 65535, greys)
            photo = Image.fromarray(((greys + 128) // 257).astype(np.uint8))
        elif photo.mode in GREY_16_MODES + GREY_32_MODES:
            raise InputError(f"photo {name} has greys that are not of 8 or 16 bits: save it with 8 bits")
        if photo.has_transparency_data:
            white = Image.new("RGBA", photo.size, "white")
            return Image.alpha_composite(white, photo.convert("RGBA")).convert("RGB")
        return photo if photo.mode == "RGB" else photo.convert("RGB")


def thumbnail(path: Path, side: int, upright: bool = False) -> Image.Image:
    """A photo in RGB with at most `side` pixels on its longer side; `upright` applies its EXIF orientation.

    InputError if it cannot be read.
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
    """Turn PIL's errors for a photo into InputError with its path, and with the advice `if_missing`."""
    try:
        yield
    except ReportedError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"photo {path} does not exist: {if_missing}") from error
    except Exception as error:  # PIL raises all kinds of errors for damaged photos
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise InputError(f"photo {path} cannot be read ({reason}): replace it or take it out of the list") from error


def _white_is_65535(photo: Image.Image) -> bool:
    """Whether 65535 is white: 16-bit greys of a TIFF may have 12 significant bits, or 65535 as black."""
    tags = getattr(photo, "tag_v2", None)
    return tags is None or (tags.get(Base.BitsPerSample), tags.get(Base.PhotometricInterpretation)) == ((16,), 1)
