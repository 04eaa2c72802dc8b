"""Images of any kind, one or many, to the pixels that the network sees."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image
from torch import Tensor

from sop.images.photo import naming, opened, to_rgb
from utils.errors import InputError

T = TypeVar("T")
Photo = str | os.PathLike | Image.Image | np.ndarray | Tensor
KINDS = (
    "a path, a PIL image, or an array or a tensor, of uint8 or of floats from 0 to 1: (3, h, w), grey ones (1, h, w) "
    "or of uint8 (h, w), arrays also (h, w, 3)"
)
NEEDS_MAPS = "The matcher needs local maps beside descriptors, both of the same network: Reranker.embed makes both"


def as_list(images: Photo | Iterable[Photo]) -> list[Any]:
    """A list of one image, or of several. Arrays and tensors of up to three dimensions are one image, but for arrays of
    paths."""
    if isinstance(images, np.ndarray | Tensor):
        is_one = images.ndim < 4 and getattr(images.dtype, "kind", "") not in ("O", "U")
    else:
        is_one = isinstance(images, str | bytes) or not isinstance(images, Iterable)
    return [images] if is_one else list(images)  # type: ignore[arg-type]


def pixels_of(image: Photo, transform: Callable[[Image.Image], T]) -> T:
    """What `transform` makes of an image: the uint8 pixels (3, crop, crop).

    Photos are turned upright by their EXIF, unlike those of a data set. The first frame of an animation is used.
    InputError for what is no image or cannot be read.
    """
    if isinstance(image, str | os.PathLike):
        path = Path(image)
        if not os.path.exists(path):  # noqa: PTH110  # Path's raises for names that are too long
            raise InputError(f"photo {path} does not exist: check the path")
        with opened(path) as photo:
            return transform(to_rgb(photo, upright=True))
    if isinstance(image, Image.Image):
        if 0 in image.size:
            raise InputError(f"a PIL image of {image.width} x {image.height} pixels is no image")
        with naming(getattr(image, "filename", "")):
            copy: Any = image.copy()  # PIL changes an image when it loads and converts it
        if hasattr(image, "tag_v2"):
            copy.tag_v2 = image.tag_v2  # TIFF tags: whether 0 is black or white
        return transform(to_rgb(copy, upright=True))
    if isinstance(image, np.ndarray | Tensor):
        return transform(to_rgb(_from_array(image)))
    raise InputError(f"{type(image).__name__} is no image: give {KINDS}")


def _from_array(image: np.ndarray | Tensor) -> Image.Image:
    """An image from numbers. Channels come first; in an array whose last dimension is 1, 3 or 4 they come last."""
    if isinstance(image, Tensor):
        description = f"a tensor {tuple(image.shape)} of {image.dtype}"
        detached = image.detach().cpu()
        values, is_last = (detached.float() if detached.is_floating_point() else detached).numpy(), False
    else:
        description = f"an array {image.shape} of {image.dtype}"
        values, is_last = image, image.ndim == 3 and image.shape[2] in (1, 3, 4)
    if values.ndim == 3 and not is_last and len(values) in (1, 3):
        values, is_last = np.moveaxis(values, 0, 2), True
    is_float = values.dtype.kind == "f"
    if values.ndim == 2 and is_float:
        raise InputError(f"{description} is no image: give {KINDS}. {NEEDS_MAPS}")
    if not (is_last or values.ndim == 2) or not (is_float or values.dtype == np.uint8) or not values.size:
        raise InputError(f"{description} is no image: give {KINDS}")
    if is_float:
        if not (values.min() >= 0 and values.max() <= 1):  # so that NaN is refused, too
            raise InputError(f"{description} with values outside 0 to 1 is no image: give {KINDS}")
        values = np.rint(values * np.float32(255)).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(values[..., 0] if values.shape[2:] == (1,) else values))
