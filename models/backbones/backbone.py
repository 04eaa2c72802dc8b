"""What a backbone is: from the pixels of images to their feature maps."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from utils.errors import InputError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Backbone(nn.Module):
    """Normalised pixels (B, 3, H, W) to feature maps (B, channels, h, w), by `forward`, made by
    `(arch, pretrained)`, the latter True, False or a file of weights.

    One that knows another `model.pool` than 'avg' also has `maps_and_pooled(pixels, pool)`: the maps, and a vector
    (B, `pooled_channels(pool)`) of each image.

    A subclass sets `channels`, and what of the others differs from ImageNet's usual ones.
    """

    channels: int
    pixel_mean, pixel_std = IMAGENET_MEAN, IMAGENET_STD  # of red, green and blue, from 0 to 1
    interpolation = "bilinear"  # by which photos are resized
    crop_fraction = 224 / 256  # of the resized photo's side, which the test images' centre crop has
    keeps_aspect = False  # of photos that are resized for evaluation; else they are squeezed into a square
    local_size: int | None = None  # side of the map, to which larger ones are pooled for local descriptors
    licence: str | None = None  # of its pretrained weights
    crop_multiple = 1  # the side of a crop is a multiple of it, in pixels
    state_prefix = "backbone."  # of its tensors' names in a network's state

    def pooled_channels(self, pool: str) -> int:
        """The size of what is pooled as `model.pool` says; InputError where the backbone does not know that."""
        if pool != "avg":
            raise InputError(f"model.pool={pool!r}: this backbone has no other vector than its maps' mean, 'avg'")
        return self.channels

    def checkpoint_gradients(self) -> None:
        """From now on keep fewer activations, and compute them again for gradients; InputError where it cannot."""
        raise InputError("model.grad_checkpointing=True: this backbone keeps all its activations, leave it out")

    def evaluation_copy(self, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
        """What answers, in `dtype` and without gradients, as the backbone in eval mode; later changes of weights do not
        reach it."""
        return copy.deepcopy(self).eval().requires_grad_(False).to(dtype)

    def fingerprint(self) -> Iterator[bytes]:
        """What maps depend on and neither the tensors nor the network's settings show."""
        yield from ()

    @property
    def resizing(self) -> dict[str, Any]:
        """How photos come to their size: arguments of `sop.images.transforms.Resizing`."""
        return {name: getattr(self, name) for name in ("interpolation", "crop_fraction", "keeps_aspect")}

    def crop_size_near(self, crop_size: int) -> int:
        """This size of crops, or the nearest that the backbone takes."""
        return round(crop_size / self.crop_multiple) * self.crop_multiple

    def check_crop_size(self, crop_size: int) -> None:
        """Raise InputError for crops that the backbone does not take."""
        if crop_size % self.crop_multiple:
            below = crop_size // self.crop_multiple * self.crop_multiple
            fitting = " or ".join(str(size) for size in (below, below + self.crop_multiple) if size)
            raise InputError(
                f"crop_size={crop_size}: the backbone takes multiples of {self.crop_multiple}, such as {fitting}"
            )
