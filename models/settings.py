"""The settings that a network is made by."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch

from models.backbones import BACKBONES, make_backbone
from utils.settings import FLAG, TEXT, Rule, Rules, either, number, one_of, whole_number

SIZE = whole_number(1, 1_000_000)
TRAINING: tuple[str, ...] = ()  # what depends on a setting: the training alone,
LOGITS = ("answers",)  # what the matcher answers, too,
DESCRIPTORS = ("answers", "descriptors")  # or what images are embedded to


def setting(default: Any, rule: Rule | None, alters: tuple[str, ...], comment: str = "") -> Any:
    """A setting's default, what it may be, what depends on it, and what `print_config` says of it."""
    return field(default=default, metadata={"rule": rule, "alters": alters, "comment": comment})


@dataclass
class NetworkSettings:
    """The settings of the `model` ingredient. Those that the answers depend on are told by checkpoints, and must be the
    same in an evaluation; while those that descriptors depend on are the same, kept ones fit."""

    arch: str = setting(
        "resnet50", TEXT, DESCRIPTORS, "resnet18, resnet34, resnet50, resnet101, resnet152, or a name of timm's"
    )
    pretrained: bool | str = setting(
        True, either(FLAG, TEXT), TRAINING, "start the backbone from its published weights, or those of this file"
    )
    dropout: float = setting(0.0, number(0, 1), TRAINING, "on the global descriptor, before the classifier")
    norm_layer: str | None = setting(
        None, one_of(None, "layer", "batch"), DESCRIPTORS, "after average pooling: 'layer', 'batch' or None"
    )
    remap: bool = setting(
        False, FLAG, DESCRIPTORS, "a linear layer before the global descriptor even when the sizes are equal"
    )
    detach: bool = setting(False, FLAG, TRAINING, "the classifier sends no gradient to the backbone")
    # a checkpoint serves both
    normalize: bool = setting(False, FLAG, ("descriptors",), "L2-normalise the global descriptor")
    set_bn_eval: bool = setting(True, FLAG, TRAINING, "keep the backbone's batch norms in eval mode while training")
    normalize_weight: bool = setting(False, FLAG, TRAINING, "L2-normalise the classifier's rows")
    freeze_backbone: bool = setting(False, FLAG, TRAINING, "train remap_local and the matcher only")
    backbone_lr: float | None = setting(None, number(0).or_none(), TRAINING, "its own learning rate; None: lr")
    grad_checkpointing: bool = setting(
        False, FLAG, TRAINING, "compute the backbone's layers again for gradients, for less memory: timm's alone"
    )
    num_global_features: int = setting(
        128, SIZE.or_none(), DESCRIPTORS, "None: the backbone's channels, without a projection"
    )
    num_local_features: int = setting(
        128,
        whole_number(4, 1_000_000, multiple=4).or_none(),
        DESCRIPTORS,
        "also the matcher's width; a multiple of 4, or None as above",
    )
    local_size: int | None = setting(
        None,
        whole_number(0, 1000).or_none(),
        DESCRIPTORS,
        "larger feature maps are pooled to this side; 0: never; None: 7, but never a ResNet's",
    )
    pool: str = setting(
        "avg",
        one_of("avg", "token", "head"),
        DESCRIPTORS,
        "the global descriptor: 'avg', 'token' (class token) or 'head' (as before timm's classifier)",
    )
    ert_seq_len: int | None = setting(102, None, TRAINING, "recorded only")
    ert_dim_feedforward: int = setting(1024, SIZE, LOGITS, "width of the feed-forward parts of the matcher's layers")
    ert_nhead: int = setting(4, SIZE, LOGITS, "attention heads of each of the matcher's layers")
    ert_num_encoder_layers: int = setting(6, whole_number(1, 1000), LOGITS, "layers of the matcher")
    ert_dropout: float = setting(0.0, number(0, 1), TRAINING, "in the matcher's layers")
    ert_activation: str = setting(
        "relu", one_of("relu", "gelu"), LOGITS, "of the matcher's feed-forward parts; or 'gelu'"
    )
    ert_normalize_before: bool = setting(False, FLAG, LOGITS, "pre-norm encoder with a final layer norm")

    def __post_init__(self):
        self.arch = self.arch.lower() if self.arch.lower() in BACKBONES else self.arch

    def those(self, dependent: str) -> dict[str, Any]:
        """The settings, by name, that 'answers' or 'descriptors' depend on."""
        return {part.name: getattr(self, part.name) for part in fields(self) if dependent in part.metadata["alters"]}


def without_later(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings but for those of `LATER` that mean what older files do: what is made from them stays the same."""
    return {name: value for name, value in settings.items() if name not in LATER or value != LATER[name]}


def with_sizes(settings: NetworkSettings) -> NetworkSettings:
    """Settings with a number for each size of descriptors that is None; InputError for an unknown `arch`."""
    if settings.num_global_features and settings.num_local_features:
        return settings
    with torch.device("meta"):  # no weights are needed
        backbone = make_backbone(settings.arch)
    return replace(
        settings,
        num_global_features=settings.num_global_features or backbone.pooled_channels(settings.pool),
        num_local_features=settings.num_local_features or backbone.channels,
    )


LATER: dict[str, Any] = {"local_size": None, "pool": "avg"}  # settings that older files lack, and what these mean
MODEL_RULES: Rules = {part.name: part.metadata["rule"] for part in fields(NetworkSettings) if part.metadata["rule"]}
TENSOR_SETTINGS = {  # which setting decides whether a tensor exists, and its shape
    r"remap_local\.": "model.num_local_features",
    r"remap\.": "model.num_global_features, model.pool and model.remap",
    r"norm_layer\.": "model.norm_layer",
    r"matcher\.encoder\.norm\.": "model.ert_normalize_before",
    r"matcher\.encoder\.layers\.\d+\.linear[12]\.": "model.ert_dim_feedforward and model.ert_num_encoder_layers",
    r"matcher\.encoder\.": "model.ert_num_encoder_layers and model.num_local_features",
    r"matcher\.": "model.num_local_features",
    r"(conv1|bn1|layer\d|backbone)\.": "model.arch",
}
ANSWER_SETTINGS = tuple(NetworkSettings().those("answers"))
