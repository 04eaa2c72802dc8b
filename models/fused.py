"""Linear layers and convolutions in one pass with what follows: by oneDNN on a CPU without gradients, else by torch."""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS = {"none": lambda x: x, "relu": F.relu, "gelu": F.gelu}


def linear(x: Tensor, weight: Tensor, bias: Tensor, activation: str = "none", added: Tensor | None = None) -> Tensor:
    """`activation(x @ weight.T + bias) + added`; the activation is 'none', 'relu' or 'gelu'."""
    if added is not None:
        if _by_onednn(x) and activation == "none" and added.dtype == x.dtype:
            return torch.ops.mkldnn._linear_pointwise.binary(x, added, weight, bias, "add")
        return linear(x, weight, bias, activation) + added
    if _by_onednn(x):
        kind = "none" if activation == "gelu" else ""
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], kind)
    return ACTIVATIONS[activation](F.linear(x, weight, bias))


def convolution(x: Tensor, conv: nn.Conv2d, activation: str = "none", added: Tensor | None = None) -> Tensor:
    """`activation(conv(x) + added)` of a zero-padded convolution with a bias; the activation is 'none' or 'relu'."""
    if not _by_onednn(x):
        y = conv(x)
        return ACTIVATIONS[activation](y if added is None else y + added)
    shape = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)  # type: ignore[arg-type]
    if added is None:
        return torch.ops.mkldnn._convolution_pointwise(x, conv.weight, conv.bias, *shape, activation, [], "")
    unary = None if activation == "none" else activation
    return torch.ops.mkldnn._convolution_pointwise.binary(
        x, added, conv.weight, conv.bias, *shape, "add", 1.0, unary, [], None
    )


def _by_onednn(x: Tensor) -> bool:
    plain = not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
    return x.device.type == "cpu" and plain and _onednn_computes_in(x.dtype)


@cache
def _onednn_computes_in(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())
