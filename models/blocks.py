"""The convolutions of torchvision's ResNet, each with its batch norm."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Pair = tuple[nn.Conv2d, nn.BatchNorm2d]


def residual_blocks(model) -> Iterator[tuple[list[Pair], Pair | None]]:
    """Each block's convolutions, in order, and that of its shortcut, if there is one."""
    for block in (block for layer in (model.layer1, model.layer2, model.layer3, model.layer4) for block in layer):
        numbers = [number for number in "123" if hasattr(block, f"conv{number}")]
        pairs = [(getattr(block, f"conv{number}"), getattr(block, f"bn{number}")) for number in numbers]
        yield pairs, None if block.downsample is None else tuple(block.downsample)


def normalised(x: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> Tensor:
    """`norm(conv(x))`, with gradients; in eval mode the batch norm is folded into the convolution: one pass less."""
    if norm.training:
        return norm(conv(x))
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)  # type: ignore[operator,arg-type]
    weight = conv.weight * scale[:, None, None, None]
    return F.conv2d(x, weight, norm.bias - norm.running_mean * scale, conv.stride, conv.padding)  # type: ignore
