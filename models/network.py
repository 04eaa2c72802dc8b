"""The network: a backbone, with the paper's two descriptors, the classifier and the matcher."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.backbones import make_backbone
from models.matcher import Matcher
from models.settings import TENSOR_SETTINGS, NetworkSettings, with_sizes, without_later
from utils.errors import InputError, choose
from utils.runtime.precision import true_float32

BATCH_NORM = nn.modules.batchnorm._BatchNorm
NORM_LAYERS = {
    None: lambda size: nn.Identity(),
    "layer": lambda size: nn.LayerNorm(size, elementwise_affine=False),
    "batch": lambda size: nn.BatchNorm1d(size, affine=False),
}


def make_matcher(settings: NetworkSettings) -> Matcher:
    """The network's matcher; InputError for heads that do not divide its width."""
    if settings.num_local_features % settings.ert_nhead:
        raise InputError(
            f"model.num_local_features={settings.num_local_features} is no multiple of "
            f"model.ert_nhead={settings.ert_nhead}: each head takes an equal share"
        )
    return Matcher(
        d_model=settings.num_local_features,
        nhead=settings.ert_nhead,
        num_encoder_layers=settings.ert_num_encoder_layers,
        dim_feedforward=settings.ert_dim_feedforward,
        dropout=settings.ert_dropout,
        activation=settings.ert_activation,
        normalize_before=settings.ert_normalize_before,
    )


class RerankingNetwork(nn.Module):
    """Images to `(logits, global, local)`: a backbone, with the paper's two descriptors.

    In its state the heads are `remap`, `remap_local`, `norm_layer` and `classifier`, the reranking transformer is
    `matcher`, and the backbone's tensors stand behind its `state_prefix`; a layer that is absent has no names.
    """

    mean: Tensor
    std: Tensor
    tensor_settings = TENSOR_SETTINGS

    def __init__(self, num_classes: int, settings: NetworkSettings):
        """For `num_classes` training classes. InputError for an unknown `arch` or `norm_layer`, for heads that do not
        divide the matcher's width, and when pretrained weights cannot be fetched."""
        settings = with_sizes(settings)
        matcher = make_matcher(settings)
        super().__init__()
        self.backbone = make_backbone(settings.arch, settings.pretrained)
        self.register_buffer("mean", torch.tensor(self.backbone.pixel_mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(self.backbone.pixel_std).view(1, 3, 1, 1))
        size, pooled_size = self.backbone.channels, self.backbone.pooled_channels(settings.pool)
        global_size, local_size = settings.num_global_features, settings.num_local_features
        self.norm_layer = choose(NORM_LAYERS, settings.norm_layer, "model.norm_layer")(pooled_size)
        is_mapped = settings.remap or pooled_size != global_size
        self.remap = nn.Linear(pooled_size, global_size) if is_mapped else nn.Identity()
        self.remap_local = nn.Conv2d(size, local_size, 1) if size != local_size else nn.Identity()
        self.classifier = nn.Linear(global_size, num_classes)
        nn.init.zeros_(self.classifier.weight)
        for head in (self.remap, self.remap_local, self.classifier):
            for bias in (p for name, p in head.named_parameters() if name == "bias"):
                nn.init.zeros_(bias)
        self.matcher, self.dropout, self.settings = matcher, nn.Dropout(settings.dropout), settings
        if self.freeze_backbone:
            for module in (self.backbone, self.norm_layer, self.remap, self.classifier):
                module.requires_grad_(False)
        if settings.grad_checkpointing:
            self._checkpoint_gradients()
        self.register_state_dict_post_hook(_name_as_in_checkpoints)
        self.register_load_state_dict_pre_hook(_name_as_in_the_network)

    def _checkpoint_gradients(self) -> None:
        has_norms = any(isinstance(module, BATCH_NORM) for module in self.backbone.modules())
        if has_norms and not (self.settings.set_bn_eval or self.freeze_backbone):
            raise InputError(
                "model.grad_checkpointing=True computes layers twice, and batch norms in training mode would count "
                "each batch twice: set model.set_bn_eval=True"
            )
        self.backbone.checkpoint_gradients()

    @property
    def learning_rates(self) -> dict[nn.Module, float]:
        """The parts that have a learning rate of their own."""
        return {} if self.settings.backbone_lr is None else {self.backbone: self.settings.backbone_lr}

    @property
    def has_projections(self) -> bool:
        """Whether a descriptor has a layer of its own."""
        return any(list(head.parameters()) for head in (self.remap, self.remap_local))

    @property
    def freeze_backbone(self) -> bool:
        """Whether `remap_local` and the matcher alone are trained."""
        return self.settings.freeze_backbone

    def fingerprint(self) -> Iterator[bytes]:
        """All that descriptors and local maps depend on: settings and tensors."""
        yield repr(without_later(self.settings.those("descriptors"))).encode()
        yield from self.backbone.fingerprint()
        for name, tensor in self.state_dict().items():
            if not name.startswith(("matcher.", "classifier.")):
                yield f"{name} {tuple(tensor.shape)}".encode()
                yield tensor.cpu().contiguous().numpy().tobytes()

    def train(self, mode: bool = True):
        """Train mode, but for the backbone's batch norms when `set_bn_eval` or `freeze_backbone` is set."""
        super().train(mode)
        if self.settings.set_bn_eval or self.freeze_backbone:
            for module in self.backbone.modules():
                if isinstance(module, BATCH_NORM):
                    module.eval()
        return self

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, 3, H, W), uint8 or floats in [0, 1] -> logits (B, classes), global (B, dg), local (B, dl, h, w)."""
        features, pooled = self.features(self.backbone, self.pixels(images))
        descriptors = self.global_descriptors(pooled)
        inputs = self.dropout(descriptors.detach() if self.settings.detach else descriptors)
        weight = self.classifier.weight
        weight = F.normalize(weight, dim=1) if self.settings.normalize_weight else weight
        return F.linear(inputs, weight, self.classifier.bias), descriptors, self.remap_local(self.pooled(features))

    def features(self, backbone: Callable[[Tensor], Tensor], pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Maps (B, C, h, w) by the backbone, or its evaluation copy, and what `global_descriptors` are made of."""
        if self.settings.pool != "avg":
            return backbone.maps_and_pooled(pixels, self.settings.pool)  # type: ignore[attr-defined]
        maps = backbone(pixels)
        return maps, maps

    def layer_features(self, images: Tensor) -> Tensor:
        """What `remap_local` makes local maps of: the backbone's maps (B, C, h, w), pooled, of images as above."""
        return self.pooled(self.backbone(self.pixels(images)))

    def pooled(self, features: Tensor) -> Tensor:
        """Maps (B, C, h, w), those that are larger than `local_size` pooled to it."""
        size = self.backbone.local_size if self.settings.local_size is None else self.settings.local_size
        height, width = features.shape[2:]
        if not size or max(height, width) <= size:
            return features
        return F.adaptive_avg_pool2d(features, (min(height, size), min(width, size)))

    def pixels(self, images: Tensor) -> Tensor:
        """Normalised pixels, channels last, of images as `forward` takes them."""
        values = images.float() / 255 if images.dtype == torch.uint8 else images
        return ((values - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def embedder(self, dtype: torch.dtype = torch.float32) -> "Embedder":
        """The network as it is now, made ready for evaluation in `dtype`."""
        return Embedder(self, dtype)

    def global_descriptors(self, features: Tensor) -> Tensor:
        """Global descriptors (B, dg) of the backbone's maps, or of what it has pooled already, (B, C)."""
        with true_float32():
            pooled = F.adaptive_avg_pool2d(features, 1).flatten(1) if features.dim() == 4 else features
            descriptors = self.remap(self.norm_layer(pooled))
        return F.normalize(descriptors, dim=1) if self.settings.normalize else descriptors


def _name_as_in_checkpoints(network: RerankingNetwork, state: dict, prefix: str, local_metadata: dict) -> None:
    """Rename tensors in a network's state, in their order."""
    inside = prefix + "backbone."
    for name in list(state):
        tensor, bare = state.pop(name), name.removeprefix(inside)
        state[name if bare == name else prefix + network.backbone.state_prefix + bare] = tensor


def _name_as_in_the_network(network: RerankingNetwork, state: dict, prefix: str, *_: Any) -> None:
    """Rename the backbone's tensors in a state that is being loaded."""
    for name in network.backbone.state_dict():
        in_checkpoints = prefix + network.backbone.state_prefix + name
        if in_checkpoints in state:
            state[f"{prefix}backbone.{name}"] = state.pop(in_checkpoints)


class Embedder:
    """Images to descriptors as the network in eval mode answers, without autograd.

    The backbone is computed in `dtype`, the global descriptor's head in float32.
    """

    @torch.no_grad()
    def __init__(self, network: RerankingNetwork, dtype: torch.dtype):
        self.network, self.dtype = network, dtype
        self.backbone = network.backbone.evaluation_copy(dtype)
        self.remap_local = copy.deepcopy(network.remap_local).to(dtype)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W), uint8 or floats in [0, 1] -> global (B, dg) float32, local (B, dl, h, w) in `dtype`."""
        features, pooled = self.network.features(self.backbone, self._pixels(images))
        return self.network.global_descriptors(pooled.float()), self.remap_local(self.network.pooled(features))

    @torch.no_grad()
    def layer_features(self, images: Tensor) -> Tensor:
        """What `remap_local` makes local maps of, (B, C, h, w) in `dtype`."""
        return self.network.pooled(self.backbone(self._pixels(images)))

    def _pixels(self, images: Tensor) -> Tensor:
        return self.network.pixels(images).to(self.dtype)
