"""Images as callers have them, one or many, to the pixels that the network sees."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sop.photo import naming, opened, to_rgb
from sop.transforms import Transform
from utils.errors import InputError

Photo = str | os.PathLike | Image.Image | np.ndarray | Tensor
KINDS = "a path, a PIL image, a uint8 array (h, w) or (h, w, 3), or a tensor (3, h, w), uint8 or floats from 0 to 1"


def as_list(images: Photo | Sequence[Photo]) -> list[Any]:
    """One image as a list of it; a sequence, or an array or a tensor with a dimension more, as the list of its images.

    An array (h, w, 3) and a tensor (3, h, w) are one image.
    """
    if isinstance(images, str | os.PathLike | Image.Image):
        return [images]
    if isinstance(images, np.ndarray | Tensor) and images.ndim < 4:
        return [images]
    return list(images)


def pixels_of(image: Photo, transform: Transform) -> Tensor:
    """The uint8 pixels (3, crop, crop) that `transform` makes of an image.

    A photo is turned upright, as its EXIF says, unlike those of a data set; of several frames it is the first.
    InputError for what is no image or cannot be read.
    """
    if isinstance(image, str | os.PathLike):
        path = Path(image)
        if not os.path.exists(path):  # noqa: PTH110  # Path's raises for names that are too long
            raise InputError(f"photo {path} does not exist: check the path")
        with opened(path) as photo:
            return transform(to_rgb(photo, upright=True))
    if isinstance(image, Image.Image):
        with naming(getattr(image, "filename", "")):
            copy: Any = image.copy()  # as PIL's loading and converting leave traces
        if hasattr(image, "tag_v2"):
            copy.tag_v2 = image.tag_v2  # tells what greys mean
        return transform(to_rgb(copy, upright=True))
    if isinstance(image, np.ndarray):
        return transform(to_rgb(_from_array(image)))
    if isinstance(image, Tensor):
        return transform(_from_tensor(image))
    raise InputError(f"{type(image).__name__} is no image: give {KINDS}")


def _from_array(array: np.ndarray) -> Image.Image:
    is_image = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if array.dtype != np.uint8 or not is_image or not array.size:
        raise InputError(f"an array {array.shape} of {array.dtype} is no image: give {KINDS}")
    return Image.fromarray(array)


def _from_tensor(tensor: Tensor) -> Image.Image:
    if tensor.dim() != 3 or len(tensor) != 3 or not tensor.numel():
        raise InputError(f"a tensor {tuple(tensor.shape)} is no image: give {KINDS}")
    if tensor.is_floating_point():
        if not (tensor.min() >= 0 and tensor.max() <= 1):  # so that NaN is refused, too
            raise InputError(f"a tensor with numbers outside 0 to 1 is no image: give {KINDS}")
        tensor = (tensor * 255).round().to(torch.uint8)
    if tensor.dtype != torch.uint8:
        raise InputError(f"a tensor of {tensor.dtype} is no image: give {KINDS}")
    return Image.fromarray(tensor.permute(1, 2, 0).cpu().contiguous().numpy())
