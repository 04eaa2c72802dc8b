"""Local maps as an index keeps them, in a row of numbers or bytes each; queries stay in float32.

* float16: the numbers.
* int8: for each patch a scale, the largest magnitude of its channels / 127, in float32; then whole numbers of scales.
* binary: for each patch the mean of its channels, and their mean absolute deviation from it, in float32; then a bit for
  each number, whether it is above the mean. A number becomes mean + deviation, or mean - deviation: signs alone would
  tell nothing of maps behind a ReLU.

A map of 128 x 7 x 7 takes 12,544, 6,468 or 1,176 bytes.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from utils.errors import InputError

FLOAT16_MAX = torch.finfo(torch.float16).max
SMALLEST = torch.finfo(torch.float32).tiny  # the least scale to divide by: a patch of zeros has scale 0


def encode(maps: Tensor, kind: str, photos: Sequence[str]) -> np.ndarray:
    """Maps (n, d, h, w), float32, of `photos` as rows: float16 (n, d * h * w), or uint8 (n, bytes) of another kind.

    InputError, with the photo, for numbers that are not finite, or beyond the range of float16 where that is the kind.
    """
    limit = FLOAT16_MAX if kind == "float16" else torch.finfo(torch.float32).max
    is_kept = (maps.abs() <= limit).flatten(1).all(dim=1)
    if not is_kept.all():
        row = int(is_kept.int().argmin())
        problem = "NaN or infinite numbers: leave it out"
        if maps[row].isfinite().all():
            problem = f"numbers beyond {limit:,.0f}, the range of float16: make a new index with --maps int8 or binary"
        raise InputError(f"the local map of {photos[row]} has {problem}")
    if kind == "float16":
        return maps.half().flatten(1).numpy()
    if kind == "int8":
        scales = maps.abs().amax(dim=1, keepdim=True) / 127
        codes = (maps / scales.clamp(min=SMALLEST)).round().to(torch.int8).flatten(1).numpy().view(np.uint8)
        return _joined([scales], codes)
    means = maps.mean(dim=1, keepdim=True)
    deviations = (maps - means).abs().mean(dim=1, keepdim=True)
    return _joined([means, deviations], np.packbits((maps > means).flatten(1).numpy(), axis=1))


def decode(rows: np.ndarray, kind: str, shape: Sequence[int]) -> Tensor:
    """Maps (n, d, h, w), float32, of the rows that `encode` made of maps of `shape` (d, h, w)."""
    d, h, w = shape
    if kind == "float16":
        return torch.from_numpy(rows.astype(np.float32)).reshape(-1, d, h, w)
    num_parts = 1 if kind == "int8" else 2
    end = num_parts * h * w * 4
    of_patches = torch.from_numpy(np.ascontiguousarray(rows[:, :end]).view(np.float32))
    of_patches, codes = of_patches.reshape(-1, num_parts, h, w), np.ascontiguousarray(rows[:, end:])
    if kind == "int8":
        return torch.from_numpy(codes.view(np.int8)).reshape(-1, d, h, w) * of_patches
    is_above = torch.from_numpy(np.unpackbits(codes, axis=1, count=d * h * w)).reshape(-1, d, h, w).bool()
    means, deviations = of_patches.split(1, dim=1)
    return torch.where(is_above, means + deviations, means - deviations)


def _joined(of_patches: list[Tensor], codes: np.ndarray) -> np.ndarray:
    """Rows of bytes: float32 numbers (n, 1, h, w) of patches, then codes uint8 (n, bytes)."""
    numbers = torch.cat(of_patches, dim=1).flatten(1).numpy()
    return np.concatenate([numbers.view(np.uint8), codes], axis=1)
