"""Transforms from an opened photo to uint8 pixels; `decode` is one of `DECODERS`, the backbone tells the `Resizing`."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandomResizedCrop

from sop.images.decoding import Box, View, exact, fast
from utils.errors import choose

Decode = Callable[[Image.Image, View], Tensor]
DECODERS: dict[str, Decode] = {"exact": exact, "fast": fast}
INTERPOLATIONS = {mode.value: mode for mode in (InterpolationMode.BILINEAR, InterpolationMode.BICUBIC)}
Transform = Callable[[Image.Image], Tensor]


class Resizing(NamedTuple):
    """How photos come to their size. The defaults are the published ones."""

    interpolation: str = "bilinear"  # or 'bicubic'
    crop_fraction: float = 224 / 256  # side of the test transform's crop over that of the resized square
    keeps_aspect: bool = False  # the test transform resizes the square in a photo's centre, not the whole photo

    @property
    def mode(self) -> InterpolationMode:
        """torchvision's name; InputError for an unknown interpolation."""
        return choose(INTERPOLATIONS, self.interpolation, "interpolation")

    def square_size(self, crop_size: int) -> int:
        """The side of the resized square of the test transform, in pixels."""
        return round(crop_size / self.crop_fraction)

    def centre_crop(self, crop_size: int) -> slice:
        """The rows, and the columns, that the test transform crops from the square."""
        start = round((self.square_size(crop_size) - crop_size) / 2)
        return slice(start, start + crop_size)

    def box(self, width: int, height: int) -> Box:
        """The part of a photo of so many pixels that becomes the square."""
        if not self.keeps_aspect:
            return (0, 0, width, height)
        side = min(width, height)
        left, upper = (width - side) // 2, (height - side) // 2
        return (left, upper, left + side, upper + side)


PUBLISHED = Resizing()


def train_transform(crop_size: int, decode: str = "exact", resizing: Resizing = PUBLISHED) -> Transform:
    """Photo -> uint8 (3, crop_size, crop_size): random resized crop, then a flip with p = 0.5.

    The boxes and flips drawn depend on neither `decode` nor `resizing`. InputError for an unknown `decode` or
    interpolation.
    """
    crop = RandomResizedCrop(crop_size, interpolation=resizing.mode)
    return partial(_random_crop, choose(DECODERS, decode, "dataset.decode"), crop)


def test_transform(crop_size: int, decode: str = "exact", resizing: Resizing = PUBLISHED) -> Transform:
    """Photo -> uint8 (3, crop_size, crop_size): resize to a square, 256 for a crop of 224, then centre crop.

    InputError for an unknown `decode` or interpolation.
    """
    return _square_view(_centre_crop, crop_size, decode, resizing)


def square_transform(crop_size: int, decode: str = "exact", resizing: Resizing = PUBLISHED) -> Transform:
    """Photo -> uint8 (3, size, size), the square of which `test_transform` takes the centre crop.

    InputError for an unknown `decode` or interpolation.
    """
    return _square_view(_resized, crop_size, decode, resizing)


def describe(transform: Transform) -> str:
    """A transform's name and settings as text."""
    assert isinstance(transform, partial)
    settings = [getattr(setting, "__name__", setting) for setting in transform.args]
    return repr((transform.func.__name__, settings, *transform.keywords.items()))


def _square_view(view: Callable[..., Tensor], crop_size: int, decode: str, resizing: Resizing) -> Transform:
    decoder = choose(DECODERS, decode, "dataset.decode")
    choose(INTERPOLATIONS, resizing.interpolation, "interpolation")  # before any photo
    changes = {} if resizing == PUBLISHED else {"resizing": resizing}
    return partial(view, decoder, crop_size, **changes)


def _random_crop(decoder: Decode, crop: RandomResizedCrop, photo: Image.Image):
    upper, left, height, width = crop.get_params(photo, crop.scale, crop.ratio)
    flipped, size = bool(torch.rand(1) < 0.5), crop.size[0]
    box = (left, upper, left + width, upper + height)
    return decoder(photo, View(box, size, size, flipped=flipped, interpolation=crop.interpolation))


def _resized(decoder: Decode, crop_size: int, photo: Image.Image, resizing: Resizing = PUBLISHED):
    size = resizing.square_size(crop_size)
    return decoder(photo, View(resizing.box(*photo.size), size, crop_size, interpolation=resizing.mode))


def _centre_crop(decoder: Decode, crop_size: int, photo: Image.Image, resizing: Resizing = PUBLISHED):
    size, crop = resizing.square_size(crop_size), resizing.centre_crop(crop_size)
    return decoder(photo, View(resizing.box(*photo.size), size, crop_size, crop, interpolation=resizing.mode))
