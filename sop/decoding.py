"""From an opened photo to the uint8 pixels of a view of it, by PIL or with nearly the same pixels in less time."""

import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor
from torchvision.transforms.v2.functional import resize

from utils.errors import InputError

Box = tuple[float, float, float, float]  # left, upper, right, lower, in pixels of the whole photo


class View(NamedTuple):
    """What is shown of a photo: a part of it, resized (bilinear) to a square of which the middle is taken."""

    box: Box
    size: int  # of the square, in pixels
    least: int  # pixels that both sides of a photo keep where it is decoded smaller than it is
    middle: slice = slice(None)  # rows, and columns, of the square
    flipped: bool = False  # left to right

    def of(self, square: Tensor) -> Tensor:
        """The view's pixels, of those (3, size, size) of its square."""
        pixels = square[:, self.middle, self.middle]
        return pixels.flip(2) if self.flipped else pixels


def exact(photo: Image.Image, view: View) -> Tensor:
    """The pixels of PIL's `crop` and `resize`.

    Of a whole photo only what the middle shows is resized, where the pixels are the same: division by a power of 2 is
    exact, and Pillow's passes come in the same order (the vertical one first where the height shrinks by more than
    twice what the width does).
    """
    (width, height), size = photo.size, view.size
    whole = view.box == (0, 0, width, height) and not view.flipped
    if whole and math.log2(size).is_integer() and height - size <= 2 * (width - size):
        start, stop, _ = view.middle.indices(size)
        box = (start * width / size, start * height / size, stop * width / size, stop * height / size)
        return to_tensor(to_rgb(photo).resize((stop - start, stop - start), Image.Resampling.BILINEAR, box))
    return view.of(to_tensor(to_rgb(photo).crop(view.box).resize((size, size), Image.Resampling.BILINEAR)))


def fast(photo: Image.Image, view: View) -> Tensor:
    """A JPEG is decoded at a half, a quarter or an eighth of its size where both sides keep `least` pixels."""
    return shown(_reduced(photo, view.least), view, photo.size)


def shown(pixels: Tensor, view: View, size: tuple[int, int] | None = None) -> Tensor:
    """A view, of decoded pixels (3, h, w); `size` is the photo's width and height if it is another.

    The box grows to whole pixels.
    """
    _, height, width = pixels.shape
    across, down = (width / size[0], height / size[1]) if size else (1, 1)
    rows = slice(math.floor(view.box[1] * down), math.ceil(view.box[3] * down))
    columns = slice(math.floor(view.box[0] * across), math.ceil(view.box[2] * across))
    return view.of(resize(pixels[:, rows, columns], [view.size, view.size], antialias=True))


def _reduced(photo: Image.Image, least: int) -> Tensor:
    """RGB (3, h, w) of a photo, at a fraction of its size where that leaves both sides `least` pixels or more."""
    from simplejpeg import decode_jpeg  # only "fast" needs it

    if isinstance(photo, JpegImageFile) and photo.fp and photo.mode in ("RGB", "L"):
        reduction = next((factor for factor in (8, 4, 2) if min(photo.size) >= factor * least), 1)
        width, height = (math.ceil(side / reduction) for side in photo.size)
        photo.fp.seek(0)
        with suppress(ValueError):  # PIL decides whether a photo is damaged
            decoded = decode_jpeg(photo.fp.read(), min_height=height, min_width=width)
            return torch.from_numpy(decoded).permute(2, 0, 1)
    return to_tensor(to_rgb(photo))


def to_rgb(photo: Image.Image) -> Image.Image:
    """The photo in RGB; one that is so already is not copied."""
    return photo if photo.mode == "RGB" else photo.convert("RGB")


def to_tensor(image: Image.Image) -> Tensor:
    """The uint8 pixels (3, height, width) of an RGB image."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@contextmanager
def naming(path: Path | str) -> Iterator[None]:
    """Turn what PIL raises for a photo into an InputError that names it."""
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"photo {path} does not exist: run prepare_data.py, or set dataset.data_path") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(
            f"photo {path} cannot be read ({error}): replace it or take it out of the split file"
        ) from error
