"""A trained network as an evaluation runs it: batch norms folded into the convolutions, in one number format."""

import copy

import torch
from torch import Tensor, nn

from models.blocks import folded, residual_blocks, through_blocks
from models.fused import convolution


class Embedder:
    """Images to descriptors as the network in eval mode answers, without autograd.

    Convolutions are computed in `dtype`, the global descriptor's head in float32.
    """

    @torch.no_grad()
    def __init__(self, model, dtype: torch.dtype):
        def ready(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
            one = copy.deepcopy(conv)
            one.weight, one.bias = (nn.Parameter(tensor) for tensor in folded(conv, norm))
            return one.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]

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
        x = self.model.maxpool(convolution(self.model.pixels(images).to(self.dtype), self.stem, "relu"))
        return through_blocks(x, self.blocks, convolution)
