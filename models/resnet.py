"""ResNet trunk with a global and a local descriptor head, a classifier, and the matcher beside them."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import get_model_weights
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from models.matcher import Matcher
from models.trunk import Embedder, convolve_and_normalise, residual_blocks, through_blocks
from utils.errors import InputError, choose
from utils.runtime.precision import true_float32

BLOCKS: dict[str, tuple[type[BasicBlock | Bottleneck], list[int]]] = {
    "resnet18": (BasicBlock, [2, 2, 2, 2]),
    "resnet34": (BasicBlock, [3, 4, 6, 3]),
    "resnet50": (Bottleneck, [3, 4, 6, 3]),
    "resnet101": (Bottleneck, [3, 4, 23, 3]),
    "resnet152": (Bottleneck, [3, 8, 36, 3]),
}
NORM_LAYERS = {
    None: lambda size: nn.Identity(),
    "layer": lambda size: nn.LayerNorm(size, elementwise_affine=False),
    "batch": lambda size: nn.BatchNorm1d(size, affine=False),
}
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class RerankingResNet(ResNet):
    """Images to `(logits, global, local)`: torchvision's ResNet cut after `layer4`, with the paper's two descriptors.

    The state carries torchvision's names for the trunk, `remap`, `remap_local`, `norm_layer` and `classifier` for the
    heads and `matcher.*` for the reranking transformer; a layer that is absent has no names.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        num_classes: int,
        matcher: Matcher,
        arch: str = "resnet50",
        pretrained: bool = False,
        num_global_features: int = 128,
        num_local_features: int = 128,
        norm_layer: str | None = None,
        remap: bool = False,
        normalize: bool = False,
        dropout: float = 0.0,
        detach: bool = False,
        normalize_weight: bool = False,
        set_bn_eval: bool = True,
        freeze_backbone: bool = False,
    ):
        arch = arch.lower()
        super().__init__(*choose(BLOCKS, arch, "model.arch"), num_classes=1, zero_init_residual=True)
        size = self.fc.in_features
        del self.fc
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                module.reset_parameters()  # PyTorch's own initialisation, not torchvision's Kaiming fan-out
        if pretrained:
            self.load_state_dict(_imagenet_weights(arch))
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))
        self.norm_layer = choose(NORM_LAYERS, norm_layer, "model.norm_layer")(size)
        self.remap = nn.Linear(size, num_global_features) if remap or size != num_global_features else nn.Identity()
        self.remap_local = nn.Conv2d(size, num_local_features, 1) if size != num_local_features else nn.Identity()
        self.classifier = nn.Linear(num_global_features, num_classes)
        nn.init.zeros_(self.classifier.weight)
        for head in (self.remap, self.remap_local, self.classifier):
            for bias in (p for name, p in head.named_parameters() if name == "bias"):
                nn.init.zeros_(bias)
        self.matcher = matcher
        self.normalize, self.normalize_weight = normalize, normalize_weight
        self.dropout, self.detach = nn.Dropout(dropout), detach
        self.freeze_backbone, self.keep_batch_statistics = freeze_backbone, set_bn_eval or freeze_backbone
        if freeze_backbone:
            trunk = (self.conv1, self.bn1, self.layer1, self.layer2, self.layer3, self.layer4)
            for module in (*trunk, self.norm_layer, self.remap, self.classifier):
                module.requires_grad_(False)

    def train(self, mode: bool = True):
        """Train mode, but for the trunk's batch norms when `set_bn_eval` or `freeze_backbone` is set."""
        super().train(mode)
        if self.keep_batch_statistics:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, 3, H, W), uint8 or floats in [0, 1] -> logits (B, classes), global (B, dg), local (B, dl, H/32, W/32)."""
        features = self.layer_features(images)
        descriptors = self.global_descriptors(features)
        inputs = self.dropout(descriptors.detach() if self.detach else descriptors)
        weight = F.normalize(self.classifier.weight, dim=1) if self.normalize_weight else self.classifier.weight
        return F.linear(inputs, weight, self.classifier.bias), descriptors, self.remap_local(features)

    def layer_features(self, images: Tensor) -> Tensor:
        """The `layer4` map (B, C, H/32, W/32) of images as `forward` takes them."""
        x = self.maxpool(convolve_and_normalise(self.pixels(images), (self.conv1, self.bn1), "relu"))
        return through_blocks(x, residual_blocks(self), convolve_and_normalise)

    def pixels(self, images: Tensor) -> Tensor:
        """Normalised pixels, channels last, of images as `forward` takes them."""
        values = images.float() / 255 if images.dtype == torch.uint8 else images
        return ((values - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def embedder(self, dtype: torch.dtype = torch.float32) -> Embedder:
        """The network as it is now, made ready for evaluation in `dtype`."""
        return Embedder(self, dtype)

    def global_descriptors(self, features: Tensor) -> Tensor:
        """Global descriptors (B, dg) of `layer4` maps."""
        with true_float32():
            descriptors = self.remap(self.norm_layer(self.avgpool(features).flatten(1)))
        return F.normalize(descriptors, dim=1) if self.normalize else descriptors


def _imagenet_weights(arch: str) -> dict[str, Tensor]:
    """The trunk's tensors of torchvision's IMAGENET1K_V1 weights, from torch's hub cache or the network."""
    try:
        state = get_model_weights(arch)["IMAGENET1K_V1"].get_state_dict(progress=True, check_hash=True)
    except OSError as error:
        raise InputError(
            f"model.pretrained=True: the ImageNet weights of {arch} could not be fetched ({error}). Put the file into "
            f"{torch.hub.get_dir()}/checkpoints by hand, start from a checkpoint with resume=FILE, or train from "
            "scratch with model.pretrained=False model.set_bn_eval=False"
        ) from error
    return {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
