"""From an opened photo to the uint8 pixels that a loader yields; `decode` is one of `sop.decoding.PARTS`."""

import math
from collections.abc import Callable
from functools import partial

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import RandomResizedCrop

from sop.decoding import PARTS, Part, exact_part, to_rgb, to_tensor
from utils.errors import choose

RESIZE_TO_CROP = 256 / 224  # the test side's ratio of resize to crop

Transform = Callable[[Image.Image], Tensor]


def train_transform(crop_size: int, decode: str = "exact") -> Transform:
    """Photo -> uint8 (3, crop_size, crop_size): random resized crop (bilinear), then a flip with p = 0.5.

    Every `decode` draws the same boxes and flips. InputError for an unknown one.
    """
    return partial(_random_part, choose(PARTS, decode, "dataset.decode"), RandomResizedCrop(crop_size))


def test_transform(crop_size: int, decode: str = "exact") -> Transform:
    """Photo -> uint8 (3, crop_size, crop_size): resize to a square, 256 for a crop of 224, then centre crop.

    InputError for an unknown `decode`.
    """
    part = choose(PARTS, decode, "dataset.decode")
    return partial(_exact_middle, crop_size) if part is exact_part else partial(_middle, part, crop_size)


def square_transform(crop_size: int, decode: str = "exact") -> Transform:
    """Photo -> uint8 (3, size, size), the square of which `test_transform` takes `centre_crop`.

    InputError for an unknown `decode`.
    """
    return partial(_square, choose(PARTS, decode, "dataset.decode"), crop_size)


def describe(transform: Transform) -> str:
    """A transform's name and settings, by which it is told from others."""
    assert isinstance(transform, partial)
    return repr((transform.func.__name__, [getattr(setting, "__name__", setting) for setting in transform.args]))


def square_size(crop_size: int) -> int:
    """The side of the test side's square, in pixels."""
    return round(crop_size * RESIZE_TO_CROP)


def centre_crop(crop_size: int) -> slice:
    """The rows, and the columns, of the square that the test side shows."""
    start = round((square_size(crop_size) - crop_size) / 2)
    return slice(start, start + crop_size)


def _random_part(part: Part, crop: RandomResizedCrop, photo: Image.Image) -> Tensor:
    upper, left, height, width = crop.get_params(photo, crop.scale, crop.ratio)
    flipped = torch.rand(1) < 0.5
    pixels = part(photo, (left, upper, left + width, upper + height), crop.size[0], crop.size[0])
    return pixels.flip(2) if flipped else pixels


def _square(part: Part, crop_size: int, photo: Image.Image) -> Tensor:
    return part(photo, (0, 0, *photo.size), square_size(crop_size), crop_size)


def _middle(part: Part, crop_size: int, photo: Image.Image) -> Tensor:
    middle = centre_crop(crop_size)
    return _square(part, crop_size, photo)[:, middle, middle]


def _exact_middle(crop_size: int, photo: Image.Image) -> Tensor:
    """`_middle` of the exact part, resizing only what the crop shows.

    The pixels are the same: division by a power of 2 is exact, and Pillow's passes come in the same order (the vertical
    one first where the height shrinks by more than twice what the width does).
    """
    (width, height), size, middle = photo.size, square_size(crop_size), centre_crop(crop_size)
    if not (math.log2(size).is_integer() and height - size <= 2 * (width - size)):
        return _middle(exact_part, crop_size, photo)
    left, right = (edge * width / size for edge in (middle.start, middle.stop))
    upper, lower = (edge * height / size for edge in (middle.start, middle.stop))
    box = (left, upper, right, lower)
    return to_tensor(to_rgb(photo).resize((crop_size, crop_size), Image.Resampling.BILINEAR, box))
