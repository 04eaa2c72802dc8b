"""Fixed sine position code of a local map's grid."""

import torch
from torch import Tensor

from utils.errors import InputError


def sine_position_encoding(channels: int, height: int, width: int) -> Tensor:
    """Position code of a `height` x `width` grid: float32, shape (channels, height, width).

    Row i = 1...h lies at y = 2 i / (h + 1e-6), column j likewise at x; with m = channels / 2, channel 2k of the y half
    is sin(y / 10000^(2k/m)), channel 2k+1 its cosine; the x half follows.

    Raises InputError unless `channels` is a multiple of 4.
    """
    if channels % 4:
        raise InputError(f"model.num_local_features={channels}: the position code needs a multiple of 4")
    half = channels // 2
    frequencies = 10000 ** -(torch.arange(0, half, 2, dtype=torch.float32) / half)

    def axis(length: int) -> Tensor:
        """(half, length): sines and cosines in turn."""
        phases = torch.arange(1, length + 1) * (2 / (length + 1e-6)) * frequencies[:, None]
        return torch.stack((phases.sin(), phases.cos()), dim=1).flatten(0, 1)

    y = axis(height)[:, :, None].expand(-1, -1, width)
    x = axis(width)[:, None, :].expand(-1, height, -1)
    return torch.cat((y, x))
