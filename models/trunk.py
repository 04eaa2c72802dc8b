"""How the trunk is computed: torchvision's ResNet, its batch norms folded into the convolutions where they are fixed.

Both walks visit the same blocks: training by `convolve_and_normalise`, evaluation by `convolve_folded`.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

from models.fused import TRIAL, is_usable, matches_reference, suits_gpu, suits_onednn

ConvAndNorm = tuple[nn.Conv2d, nn.BatchNorm2d]


def residual_blocks(model) -> Iterator[tuple[list[ConvAndNorm], ConvAndNorm | None]]:
    """Each block's convolutions, in order, and that of its shortcut, if there is one, all with their batch norms."""
    for block in (block for layer in (model.layer1, model.layer2, model.layer3, model.layer4) for block in layer):
        pairs = [(block.conv1, block.bn1), (block.conv2, block.bn2)]
        if isinstance(block, Bottleneck):
            pairs.append((block.conv3, block.bn3))
        yield pairs, None if block.downsample is None else tuple(block.downsample)


def through_blocks(x: Tensor, blocks: Iterable, convolve: Callable[..., Tensor]) -> Tensor:
    """`x` through blocks laid out as `residual_blocks` gives them; `convolve(x, convolution, activation, added)`."""
    for (*first, last), shortcut in blocks:
        identity = x if shortcut is None else convolve(x, shortcut)
        for convolution in first:
            x = convolve(x, convolution, "relu")
        x = convolve(x, last, "relu", identity)
    return x


def convolve_and_normalise(
    x: Tensor, conv_and_norm: ConvAndNorm, activation: str = "none", added: Tensor | None = None
) -> Tensor:
    """`activation(norm(conv(x)) + added)`, with gradients; the activation is 'none' or 'relu'.

    In eval mode the batch norm is folded into the convolution: one pass less.
    """
    conv, norm = conv_and_norm
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


def convolve_folded(x: Tensor, conv: nn.Conv2d, activation: str = "none", added: Tensor | None = None) -> Tensor:
    """`activation(conv(x) + added)` of a zero-padded convolution with a bias; the activation is 'none' or 'relu'.

    In one pass where it can be, without gradients: by oneDNN on a CPU, by cuDNN on a GPU where a ReLU follows.
    """
    if suits_onednn(x, _onednn_convolves_in):
        return _by_onednn(x, conv, activation, added)
    if activation == "relu" and suits_gpu(x) and _cudnn_convolves(x, conv, added):
        return _by_cudnn(x, conv, added)
    return _by_torch(x, conv, activation, added)


def _by_torch(x: Tensor, conv: nn.Conv2d, activation: str, added: Tensor | None) -> Tensor:
    y = conv(x)
    if added is not None:
        y += added
    return F.relu(y, inplace=True) if activation == "relu" else y


def _by_cudnn(x: Tensor, conv: nn.Conv2d, added: Tensor | None) -> Tensor:
    """`relu(conv(x) + added)`."""
    shape = (conv.stride, conv.padding, conv.dilation, conv.groups)
    if added is None:
        return torch.cudnn_convolution_relu(x, conv.weight, conv.bias, *shape)  # type: ignore[arg-type]
    return torch.cudnn_convolution_add_relu(x, conv.weight, added, 1.0, conv.bias, *shape)  # type: ignore[arg-type]


def _cudnn_convolves(x: Tensor, conv: nn.Conv2d, added: Tensor | None) -> bool:
    """Whether cuDNN's fused convolution answers as a plain one. It knows nothing of deterministic algorithms."""
    trial = x[:TRIAL], conv
    also = None if added is None else added[:TRIAL]
    return not torch.are_deterministic_algorithms_enabled() and is_usable(
        (_by_cudnn, x.device, x.dtype, conv.weight.shape, conv.stride, added is None),
        f"convolutions of {conv.in_channels} channels are computed without cuDNN's ReLU",
        lambda: _by_cudnn(*trial, also),
        lambda: _by_torch(*trial, "relu", also),
        x.dtype,
    )


def _by_onednn(x: Tensor, conv: nn.Conv2d, activation: str, added: Tensor | None) -> Tensor:
    shape = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)  # type: ignore[arg-type]
    if added is None:
        return torch.ops.mkldnn._convolution_pointwise(x, conv.weight, conv.bias, *shape, activation, [], "")
    unary = None if activation == "none" else activation
    return torch.ops.mkldnn._convolution_pointwise.binary(
        x, added, conv.weight, conv.bias, *shape, "add", 1.0, unary, [], None
    )


@cache
def _onednn_convolves_in(dtype: torch.dtype) -> bool:
    """Whether oneDNN's fused convolutions answer as plain ones; tried once, and a line says where they do not."""
    conv = nn.utils.skip_init(nn.Conv2d, 2, 2, 3, padding=1)  # draws no random numbers
    for parameter in conv.parameters():
        parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view_as(parameter))
    conv = conv.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    maps = torch.linspace(-1, 1, 32, dtype=dtype).view(1, 2, 4, 4).contiguous(memory_format=torch.channels_last)
    inputs = (maps, maps[..., :1, :1].contiguous(memory_format=torch.channels_last))

    def all_cases(compute: Callable[..., Tensor]) -> Tensor:
        cases = [(x, activation, added) for x in inputs for activation in ("none", "relu") for added in (None, x)]
        return torch.cat([compute(x, conv, activation, added).flatten() for x, activation, added in cases])

    fallback = "convolutions are computed without oneDNN's fused operator"
    return matches_reference(fallback, lambda: all_cases(_by_onednn), lambda: all_cases(_by_torch), dtype)


class Embedder:
    """Images to descriptors as the network in eval mode answers, without autograd.

    Convolutions are computed in `dtype`, the global descriptor's head in float32.
    """

    @torch.no_grad()
    def __init__(self, model, dtype: torch.dtype):
        def ready(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
            folded_conv = copy.deepcopy(conv)
            folded_conv.weight, folded_conv.bias = (nn.Parameter(tensor) for tensor in folded(conv, norm))
            return folded_conv.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]

        self.model, self.dtype = model, dtype
        self.stem, self.blocks = ready(model.conv1, model.bn1), []
        for pairs, shortcut in residual_blocks(model):
            self.blocks.append(([ready(*pair) for pair in pairs], shortcut and ready(*shortcut)))
        self.remap_local = copy.deepcopy(model.remap_local).to(dtype)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W), uint8 or floats in [0, 1] -> global (B, dg) float32, local (B, dl, H/32, W/32) in `dtype`."""
        features = self.layer_features(images)
        return self.model.global_descriptors(features.float()), self.remap_local(features)

    @torch.no_grad()
    def layer_features(self, images: Tensor) -> Tensor:
        """The `layer4` maps (B, C, H/32, W/32) in `dtype` of images as above."""
        x = self.model.maxpool(convolve_folded(self.model.pixels(images).to(self.dtype), self.stem, "relu"))
        return through_blocks(x, self.blocks, convolve_folded)
