"""torchvision's ResNets, cut after `layer4`. Batch norms are folded into the convolutions where they are fixed.

Training and evaluation share the order of the blocks; training convolves by `convolve_and_normalise`, evaluation by
`convolve_folded`.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import get_model_weights
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from models.backbones.backbone import Backbone
from models.fused import TRIAL, is_usable, matches_reference, suits_gpu, suits_onednn
from utils.errors import InputError
from utils.io.checkpoint import load_finite, read_tensors, state_of

BLOCKS: dict[str, tuple[type[BasicBlock | Bottleneck], list[int]]] = {
    "resnet18": (BasicBlock, [2, 2, 2, 2]),
    "resnet34": (BasicBlock, [3, 4, 6, 3]),
    "resnet50": (Bottleneck, [3, 4, 6, 3]),
    "resnet101": (Bottleneck, [3, 4, 23, 3]),
    "resnet152": (Bottleneck, [3, 8, 36, 3]),
}
ConvAndNorm = tuple[nn.Conv2d, nn.BatchNorm2d]


class ResNetBackbone(Backbone, ResNet):
    """torchvision's ResNet; its tensors have torchvision's names in a network's state, too."""

    state_prefix = ""
    conv1: nn.Conv2d
    bn1: nn.BatchNorm2d
    maxpool: nn.MaxPool2d
    fc: nn.Linear

    def __init__(self, arch: str, pretrained: bool | str = False):
        """InputError when pretrained weights cannot be fetched."""
        super().__init__(*BLOCKS[arch], num_classes=1, zero_init_residual=True)
        self.channels = self.fc.in_features
        del self.fc
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                module.reset_parameters()  # PyTorch's own initialisation, not torchvision's Kaiming fan-out
        if pretrained:
            load_finite(self, imagenet_weights(arch) if pretrained is True else weights_in(pretrained), arch)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> `layer4` maps (B, channels, H/32, W/32), rounded up."""
        x = self.maxpool(convolve_and_normalise(pixels, (self.conv1, self.bn1), "relu"))
        return through_blocks(x, residual_blocks(self), convolve_and_normalise)

    def evaluation_copy(self, dtype: torch.dtype) -> "FoldedResNet":
        """Its batch norms folded into the convolutions, and these computed in `dtype`."""
        return FoldedResNet(self, dtype)


def imagenet_weights(arch: str) -> dict[str, Tensor]:
    """The tensors of torchvision's IMAGENET1K_V1 weights, from torch's hub cache or the network."""
    try:
        state = get_model_weights(arch)["IMAGENET1K_V1"].get_state_dict(progress=True, check_hash=True)
    except OSError as error:
        raise InputError(
            f"model.pretrained=True: the ImageNet weights of {arch} could not be fetched ({error}). Put the file into "
            f"{torch.hub.get_dir()}/checkpoints by hand, start from a checkpoint with resume=FILE, or train from "
            "scratch with model.pretrained=False model.set_bn_eval=False"
        ) from error
    return _without_classifier(state)


def weights_in(path: str) -> dict[str, Tensor]:
    """The tensors of a file of torchvision's weights; InputError for anything else."""
    return _without_classifier(state_of(read_tensors(path), path))


def _without_classifier(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}


def residual_blocks(resnet: ResNet) -> Iterator[tuple[list[ConvAndNorm], ConvAndNorm | None]]:
    """Each block's convolutions, in order, and that of its shortcut, if there is one, all with their batch norms."""
    for block in (block for layer in (resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4) for block in layer):
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
        return _convolve_by_onednn(x, conv, activation, added)
    if activation == "relu" and suits_gpu(x) and _cudnn_convolves(x, conv, added):
        return _convolve_by_cudnn(x, conv, added)
    return _convolve_by_torch(x, conv, activation, added)


def _convolve_by_torch(x: Tensor, conv: nn.Conv2d, activation: str, added: Tensor | None) -> Tensor:
    y = conv(x)
    if added is not None:
        y += added
    return F.relu(y, inplace=True) if activation == "relu" else y


def _convolve_by_cudnn(x: Tensor, conv: nn.Conv2d, added: Tensor | None) -> Tensor:
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
        (_convolve_by_cudnn, x.device, x.dtype, conv.weight.shape, conv.stride, added is None),
        f"convolutions of {conv.in_channels} channels are computed without cuDNN's ReLU",
        lambda: _convolve_by_cudnn(*trial, also),
        lambda: _convolve_by_torch(*trial, "relu", also),
        x.dtype,
    )


def _convolve_by_onednn(x: Tensor, conv: nn.Conv2d, activation: str, added: Tensor | None) -> Tensor:
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
    ours, plain = (partial(all_cases, convolve) for convolve in (_convolve_by_onednn, _convolve_by_torch))
    return matches_reference(fallback, ours, plain, dtype)


class FoldedResNet:
    """A ResNet as it answers in eval mode, without autograd."""

    @torch.no_grad()
    def __init__(self, resnet: ResNetBackbone, dtype: torch.dtype):
        def ready(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
            folded_conv = copy.deepcopy(conv)
            folded_conv.weight, folded_conv.bias = (nn.Parameter(tensor) for tensor in folded(conv, norm))
            return folded_conv.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]

        self.stem, self.maxpool, self.blocks = ready(resnet.conv1, resnet.bn1), resnet.maxpool, []
        for pairs, shortcut in residual_blocks(resnet):
            self.blocks.append(([ready(*pair) for pair in pairs], shortcut and ready(*shortcut)))

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> `layer4` maps, both in `dtype`."""
        return through_blocks(self.maxpool(convolve_folded(pixels, self.stem, "relu")), self.blocks, convolve_folded)
