"""From an opened photo to the uint8 pixels that a loader yields."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import RandomResizedCrop

RESIZE_TO_CROP = 256 / 224  # the test side's ratio of resize to crop

Transform = Callable[[Image.Image], Tensor]


def train_transform(crop_size: int) -> Transform:
    """Photo -> uint8 (3, crop_size, crop_size): random resized crop (bilinear), then a flip with p = 0.5."""
    return partial(_random_part, RandomResizedCrop(crop_size))


def test_transform(crop_size: int) -> Transform:
    """Photo -> uint8 (3, crop_size, crop_size): resize to a square, 256 for a crop of 224, then centre crop."""
    return partial(_middle, crop_size)


def _random_part(crop: RandomResizedCrop, photo: Image.Image) -> Tensor:
    upper, left, height, width = crop.get_params(photo, crop.scale, crop.ratio)
    flipped = torch.rand(1) < 0.5
    part = _rgb(photo).crop((left, upper, left + width, upper + height))
    pixels = _pixels(part.resize(crop.size, Image.Resampling.BILINEAR))
    return pixels.flip(2) if flipped else pixels


def _middle(crop_size: int, photo: Image.Image) -> Tensor:
    size = round(crop_size * RESIZE_TO_CROP)
    start = round((size - crop_size) / 2)
    end = start + crop_size
    image = _rgb(photo)
    width, height = image.size
    if math.log2(size).is_integer() and height - size <= 2 * (width - size):
        # only what the crop shows; the same pixels, since division by a power of 2 is exact and Pillow's passes come in
        # the same order (the vertical one first where the height shrinks by more than twice what the width does)
        box = (start * width / size, start * height / size, end * width / size, end * height / size)
        return _pixels(image.resize((crop_size, crop_size), Image.Resampling.BILINEAR, box))
    return _pixels(image.resize((size, size), Image.Resampling.BILINEAR).crop((start, start, end, end)))


def _rgb(photo: Image.Image) -> Image.Image:
    return photo if photo.mode == "RGB" else photo.convert("RGB")


def _pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
