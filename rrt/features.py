"""Features of images: their descriptors and local maps, checked."""

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
    """What the network answers for n images: descriptors (n, dg), of length 1, and local maps (n, dl, h, w), float32.

    Arrays of numpy do as well. Those of some images are had by a slice, positions or a mask: `features[:10]`; one
    position gives those of one image, n = 1. `descriptors, maps = features` unpacks both. InputError where one is
    lacking, or where they are not of as many images.
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
    """Whether these are descriptors and maps of as many images."""
    descriptors, maps = ((*getattr(part, "shape", ()),) for part in parts)
    return (len(descriptors), len(maps)) == (2, 4) and descriptors[0] == maps[0]


def as_float32(rows: np.ndarray | Tensor) -> Tensor:
    if isinstance(rows, np.ndarray):
        rows = np.require(rows, requirements="W")  # torch warns of what may not be written
    numbers = torch.as_tensor(rows, device="cpu").detach()
    if numbers.dtype == torch.uint16:
        numbers = numbers.view(torch.bfloat16)  # whose bits numpy has no other type for
    if not numbers.is_floating_point():
        raise InputError(f"features of {numbers.dtype}: give floating-point numbers")
    return numbers.to(torch.float32)
