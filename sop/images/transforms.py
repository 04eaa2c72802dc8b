"""Transforms from an opened photo to uint8 pixels; `decode` is one of `DECODERS`."""

from collections.abc import Callable
from functools import partial

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandomResizedCrop

from sop.images.decoding import View, exact, fast
from utils.errors import choose

CROP_FRACTION = 224 / 256  # side of the test transform's crop over that of the resized square
BILINEAR = InterpolationMode.BILINEAR

Decode = Callable[[Image.Image, View], Tensor]
DECODERS: dict[str, Decode] = {"exact": exact, "fast": fast}
INTERPOLATIONS = {mode.value: mode for mode in (BILINEAR, InterpolationMode.BICUBIC)}
Transform = Callable[[Image.Image], Tensor]


def train_transform(crop_size: int, decode: str = "exact", interpolation: str = "bilinear") -> Transform:
    """Photo -> uint8 (3, crop_size, crop_size): random resized crop, then a flip with p = 0.5.

    The boxes and flips drawn depend on neither `decode` nor `interpolation`. InputError for an unknown one.
    """
    crop = RandomResizedCrop(crop_size, interpolation=choose(INTERPOLATIONS, interpolation, "interpolation"))
    return partial(_random_crop, choose(DECODERS, decode, "dataset.decode"), crop)


def test_transform(
    crop_size: int, decode: str = "exact", interpolation: str = "bilinear", crop_fraction: float = CROP_FRACTION
) -> Transform:
    """Photo -> uint8 (3, crop_size, crop_size): resize to a square, 256 for a crop of 224, then centre crop.

    InputError for an unknown `decode` or `interpolation`.
    """
    return _square_view(_centre_crop, crop_size, decode, interpolation, crop_fraction)


def square_transform(
    crop_size: int, decode: str = "exact", interpolation: str = "bilinear", crop_fraction: float = CROP_FRACTION
) -> Transform:
    """Photo -> uint8 (3, size, size), the square of which `test_transform` takes `centre_crop`.

    InputError for an unknown `decode` or `interpolation`.
    """
    return _square_view(_resized, crop_size, decode, interpolation, crop_fraction)


def describe(transform: Transform) -> str:
    """A transform's name and settings as text."""
    assert isinstance(transform, partial)
    settings = [getattr(setting, "__name__", setting) for setting in transform.args]
    return repr((transform.func.__name__, settings, *transform.keywords.items()))


def square_size(crop_size: int, crop_fraction: float = CROP_FRACTION) -> int:
    """The side of the resized square of the test transform, in pixels."""
    return round(crop_size / crop_fraction)


def centre_crop(crop_size: int, crop_fraction: float = CROP_FRACTION) -> slice:
    """The rows, and the columns, that the test transform crops from the square."""
    start = round((square_size(crop_size, crop_fraction) - crop_size) / 2)
    return slice(start, start + crop_size)


def _square_view(
    view: Callable[..., Tensor], crop_size: int, decode: str, interpolation: str, crop_fraction: float
) -> Transform:
    """The transform, with keywords for what is not the default."""
    decoder = choose(DECODERS, decode, "dataset.decode")
    mode = choose(INTERPOLATIONS, interpolation, "interpolation")
    changes = {} if mode == BILINEAR else {"interpolation": mode}
    changes |= {} if crop_fraction == CROP_FRACTION else {"crop_fraction": crop_fraction}
    return partial(view, decoder, crop_size, **changes)


def _random_crop(decoder: Decode, crop: RandomResizedCrop, photo: Image.Image):
    upper, left, height, width = crop.get_params(photo, crop.scale, crop.ratio)
    flipped, size = bool(torch.rand(1) < 0.5), crop.size[0]
    box = (left, upper, left + width, upper + height)
    return decoder(photo, View(box, size, size, flipped=flipped, interpolation=crop.interpolation))


def _resized(decoder: Decode, crop_size: int, photo: Image.Image, interpolation=BILINEAR, crop_fraction=CROP_FRACTION):
    size = square_size(crop_size, crop_fraction)
    return decoder(photo, View((0, 0, *photo.size), size, crop_size, interpolation=interpolation))


def _centre_crop(
    decoder: Decode, crop_size: int, photo: Image.Image, interpolation=BILINEAR, crop_fraction=CROP_FRACTION
):
    size, crop = square_size(crop_size, crop_fraction), centre_crop(crop_size, crop_fraction)
    return decoder(photo, View((0, 0, *photo.size), size, crop_size, crop, interpolation=interpolation))
