"""Transforms from an opened photo to uint8 pixels; `decode` is one of `DECODERS`."""

from collections.abc import Callable
from functools import partial

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import RandomResizedCrop

from sop.images.decoding import View, exact, fast
from utils.errors import choose

RESIZE_TO_CROP = 256 / 224  # of the test transform

Decode = Callable[[Image.Image, View], Tensor]
DECODERS: dict[str, Decode] = {"exact": exact, "fast": fast}
Transform = Callable[[Image.Image], Tensor]


def train_transform(crop_size: int, decode: str = "exact") -> Transform:
    """Photo -> uint8 (3, crop_size, crop_size): random resized crop (bilinear), then a flip with p = 0.5.

    The boxes and flips drawn do not depend on `decode`. InputError for an unknown `decode`.
    """
    return partial(_random_crop, choose(DECODERS, decode, "dataset.decode"), RandomResizedCrop(crop_size))


def test_transform(crop_size: int, decode: str = "exact") -> Transform:
    """Photo -> uint8 (3, crop_size, crop_size): resize to a square, 256 for a crop of 224, then centre crop.

    InputError for an unknown `decode`.
    """
    return partial(_centre_crop, choose(DECODERS, decode, "dataset.decode"), crop_size)


def square_transform(crop_size: int, decode: str = "exact") -> Transform:
    """Photo -> uint8 (3, size, size), the square of which `test_transform` takes `centre_crop`.

    InputError for an unknown `decode`.
    """
    return partial(_resized, choose(DECODERS, decode, "dataset.decode"), crop_size)


def describe(transform: Transform) -> str:
    """A transform's name and settings as text."""
    assert isinstance(transform, partial)
    return repr((transform.func.__name__, [getattr(setting, "__name__", setting) for setting in transform.args]))


def square_size(crop_size: int) -> int:
    """The side of the resized square of the test transform, in pixels."""
    return round(crop_size * RESIZE_TO_CROP)


def centre_crop(crop_size: int) -> slice:
    """The rows, and the columns, that the test transform crops from the square."""
    start = round((square_size(crop_size) - crop_size) / 2)
    return slice(start, start + crop_size)


def _random_crop(decoder: Decode, crop: RandomResizedCrop, photo: Image.Image):
    upper, left, height, width = crop.get_params(photo, crop.scale, crop.ratio)
    flipped, size = bool(torch.rand(1) < 0.5), crop.size[0]
    return decoder(photo, View((left, upper, left + width, upper + height), size, size, flipped=flipped))


def _resized(decoder: Decode, crop_size: int, photo: Image.Image):
    return decoder(photo, View((0, 0, *photo.size), square_size(crop_size), crop_size))


def _centre_crop(decoder: Decode, crop_size: int, photo: Image.Image):
    return decoder(photo, View((0, 0, *photo.size), square_size(crop_size), crop_size, centre_crop(crop_size)))
