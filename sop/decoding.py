"""From an opened photo to the uint8 pixels of a part of it, resized to a square: `dataset.decode`.

"exact" decodes and resizes as PIL does. "fast" decodes a JPEG at a half, a quarter or an eighth of its size where both
sides keep `least` pixels, and torch resizes: the pixels differ a little.
"""

import math
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import torch
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor
from torch.nn.functional import interpolate

Box = tuple[int, int, int, int]  # left, upper, right, lower, in pixels of the whole photo
Part = Callable[[Image.Image, Box, int, int], Tensor]  # photo, box, size, least -> uint8 (3, size, size)


def exact_part(photo: Image.Image, box: Box, size: int, least: int) -> Tensor:
    """The pixels of PIL's `crop` and `resize` (bilinear); `least` is not used."""
    return to_tensor(to_rgb(photo).crop(box).resize((size, size), Image.Resampling.BILINEAR))


def fast_part(photo: Image.Image, box: Box, size: int, least: int) -> Tensor:
    """Nearly the same pixels, for less; the box grows to whole pixels of what was decoded."""
    pixels = _reduced(photo, least)
    across, down = pixels.shape[2] / photo.width, pixels.shape[1] / photo.height
    rows = slice(math.floor(box[1] * down), math.ceil(box[3] * down))
    columns = slice(math.floor(box[0] * across), math.ceil(box[2] * across))
    return interpolate(pixels[None, :, rows, columns], (size, size), mode="bilinear", antialias=True)[0]


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


PARTS: dict[str, Part] = {"exact": exact_part, "fast": fast_part}
