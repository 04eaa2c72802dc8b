"""Decoding of an opened photo to the uint8 pixels of a view: exactly as PIL, or faster with nearly the same pixels."""

import math
from contextlib import suppress
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import resize

from sop.images.photo import file_content, to_rgb

Box = tuple[float, float, float, float]  # left, upper, right, lower, in pixels of the whole photo


class View(NamedTuple):
    """A box of a photo, resized to a square, of which a crop is taken."""

    box: Box
    size: int  # of the square, in pixels
    min_side: int  # pixels that both sides of a photo keep if it is decoded at a fraction of its size
    crop: slice = slice(None)  # rows, and columns, of the square
    flipped: bool = False  # left to right
    interpolation: InterpolationMode = InterpolationMode.BILINEAR

    def cropped(self, square: Tensor) -> Tensor:
        """The pixels of the view from those of its square (3, size, size)."""
        pixels = square[:, self.crop, self.crop]
        return pixels.flip(2) if self.flipped else pixels


def exact(photo: Image.Image, view: View) -> Tensor:
    """The pixels of PIL's `crop` and `resize`.

    Of a whole photo only the crop is resized, if that gives the same pixels. Of a 640 x 480 photo, rows
    and columns 16 to 240 of a square of 256 are the box from 40 to 600 across and 30 to 450 down, resized to 224. Its
    corners are exact numbers, as the square's side is a power of 2. And Pillow's two passes come in the same order for
    box and photo: the vertical one first where the height shrinks by more than twice what the width does.
    """
    (width, height), size = photo.size, view.size
    resampling = Image.Resampling[view.interpolation.name]
    is_whole_photo = view.box == (0, 0, width, height) and not view.flipped
    if is_whole_photo and math.log2(size).is_integer() and height - size <= 2 * (width - size):
        start, stop, _ = view.crop.indices(size)
        box = (start * width / size, start * height / size, stop * width / size, stop * height / size)
        return to_tensor(to_rgb(photo).resize((stop - start, stop - start), resampling, box))
    return view.cropped(to_tensor(to_rgb(photo).crop(view.box).resize((size, size), resampling)))


def fast(photo: Image.Image, view: View) -> Tensor:
    """Decode a JPEG at a half, a quarter or an eighth of its size if both sides keep `min_side` pixels.

    The view's box grows to whole pixels of the decoded image.
    """
    pixels = _decode_reduced(photo, view.min_side)
    _, height, width = pixels.shape
    x_scale, y_scale = width / photo.width, height / photo.height
    rows = slice(math.floor(view.box[1] * y_scale), math.ceil(view.box[3] * y_scale))
    columns = slice(math.floor(view.box[0] * x_scale), math.ceil(view.box[2] * x_scale))
    return view.cropped(resize(pixels[:, rows, columns], [view.size, view.size], view.interpolation, antialias=True))


def _decode_reduced(photo: Image.Image, min_side: int) -> Tensor:
    """RGB pixels (3, h, w) of a photo, at a fraction of its size if both sides keep `min_side` pixels."""
    from simplejpeg import decode_jpeg  # only "fast" needs it

    if isinstance(photo, JpegImageFile) and photo.fp and photo.mode in ("RGB", "L"):
        reduction = next((factor for factor in (8, 4, 2) if min(photo.size) >= factor * min_side), 1)
        width, height = (math.ceil(side / reduction) for side in photo.size)
        content = file_content(photo)
        with suppress(ValueError):  # PIL decides whether a photo is damaged
            decoded = decode_jpeg(content, min_height=height, min_width=width)
            return torch.from_numpy(decoded).permute(2, 0, 1)
    return to_tensor(to_rgb(photo))


def to_tensor(image: Image.Image) -> Tensor:
    """The uint8 pixels (3, height, width) of an RGB image."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
