"""The convolutions of torchvision's ResNet, each with its batch norm."""

from collections.abc import Callable, Iterable, Iterator

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


def through_blocks(x: Tensor, blocks: Iterable, convolve: Callable[..., Tensor]) -> Tensor:
    """`x` through blocks laid out as `residual_blocks` gives them; `convolve(x, convolution, activation, added)`."""
    for (*first, last), shortcut in blocks:
        identity = x if shortcut is None else convolve(x, shortcut)
        for convolution in first:
            x = convolve(x, convolution, "relu")
        x = convolve(x, last, "relu", identity)
    return x


def normalised(x: Tensor, pair: Pair, activation: str = "none", added: Tensor | None = None) -> Tensor:
    """`activation(norm(conv(x)) + added)`, with gradients; the activation is 'none' or 'relu'.

    In eval mode the batch norm is folded into the convolution: one pass less.
    """
    conv, norm = pair
    if norm.training:
        y = norm(conv(x))
    else:
        weight, bias = folded(conv, norm)
        y = F.conv2d(x, weight, bias, conv.stride, conv.padding)  # type: ignore[arg-type]
    if added is not None:
        y = y.add_(added)
    return F.relu(y, inplace=True) if activation == "relu" else y


def folded(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution that does what `conv`, without a bias, and `norm` in eval mode do."""
    inverse = torch.rsqrt(norm.running_var + norm.eps)  # type: ignore[operator,arg-type]
    weight = conv.weight * (norm.weight * inverse)[:, None, None, None]
    return weight, norm.bias - norm.running_mean * inverse * norm.weight  # type: ignore[operator]
