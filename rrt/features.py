"""Features of images: descriptors and local maps."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rrt.images import NEEDS_MAPS
from utils.errors import InputError


@dataclass(frozen=True, eq=False)
class Features:
    """The network's output for n images: descriptors (n, dg) of length 1, and local maps (n, dl, h, w), float32.

    Both may be numpy arrays, too. A slice, positions or a mask select images: `features[:10]`; a single position gives
    features of one image, n = 1. `descriptors, maps = features` unpacks both. InputError where one is missing, or
    where they are not of the same number of images.
    """

    descriptors: Any
    maps: Any

    def __post_init__(self):
        if not are_features(self):
            shapes = " and ".join(str(tuple(part.shape)) if hasattr(part, "shape") else repr(part) for part in self)
            raise InputError(f"{shapes} are no features: give descriptors (n, dg) and maps (n, dl, h, w). {NEEDS_MAPS}")

    def __len__(self) -> int:
        return len(self.descriptors)

    def __iter__(self) -> Iterator[Any]:
        return iter((self.descriptors, self.maps))

    def __getitem__(self, rows: Any) -> "Features":
        if isinstance(rows, int | np.integer):
            rows = [range(len(self))[rows]]
        return Features(*(part[rows] for part in self))


def are_features(parts: Iterable) -> bool:
    """Whether the parts are descriptors and maps of the same number of images."""
    descriptors, maps = ((*getattr(part, "shape", ()),) for part in parts)
    return (len(descriptors), len(maps)) == (2, 4) and descriptors[0] == maps[0]


def as_float32(values: np.ndarray | Tensor) -> Tensor:
    if isinstance(values, np.ndarray):
        values = np.require(values, requirements="W")  # torch warns of read-only arrays
    tensor = torch.as_tensor(values, device="cpu").detach()
    if tensor.dtype == torch.uint16:
        tensor = tensor.view(torch.bfloat16)  # numpy has no bfloat16
    if not tensor.is_floating_point():
        raise InputError(f"features of {tensor.dtype}: give floating-point numbers")
    return tensor.to(torch.float32)
