"""The `model` ingredient: from config to network."""

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from sacred import Ingredient
from sacred.config import ConfigDict

from models.backbones import make_backbone
from models.network import RerankingNetwork
from models.settings import NetworkSettings
from utils.io.checkpoint import TrainingInfo, load_weights

model_ingredient = Ingredient("model", save_git_info=False)  # the commands note all modules


class Defaults(ConfigDict):
    """The defaults of `NetworkSettings`, with the comments that `print_config` shows."""

    def __call__(self, **given):
        summary = super().__call__(**given)
        summary.docs |= {part.name: part.metadata["comment"] for part in fields(NetworkSettings)}
        return summary


model_ingredient.configurations.append(Defaults(asdict(NetworkSettings())))


@model_ingredient.named_config
def resnet50():
    """The published network."""
    arch = "resnet50"
    normalize = True


@model_ingredient.named_config
def lite0():
    """EfficientNet-lite0: small, for CPUs and a first try on one's own photos."""
    # 7 x 7 tokens at 224 pixels; a package of requirements.txt has its weights
    arch = "tf_efficientnet_lite0"
    num_global_features = 128
    num_local_features = 128
    normalize = True


@model_ingredient.named_config
def dinov2_small():
    """DINOv2's ViT-S/14, whose weights the hub has; dataset.crop_size must be a multiple of 14."""
    # 16 x 16 tokens at 224 pixels, pooled to 7 x 7 for local maps
    arch = "vit_small_patch14_dinov2.lvd142m"
    num_global_features = 384
    num_local_features = 128
    normalize = True
    pool = "token"
    backbone_lr = 1e-5  # a hundredth of experiment_global.py's rate: pretrained transformers forget at more


@model_ingredient.named_config
def demo():
    """The demo's ResNet-18 with two layers of transformer."""
    arch = "resnet18"
    pretrained = False
    normalize = True
    set_bn_eval = False
    ert_dim_feedforward = 256
    ert_nhead = 32
    ert_num_encoder_layers = 2
    ert_normalize_before = True  # learns at ten times the learning rate at which the post-norm encoder collapses


@model_ingredient.capture
def resizing(crop_size: int, arch: str) -> dict[str, Any]:
    """How the backbone wants photos resized, as arguments of `Resizing`; InputError for crops it does not take."""
    with torch.device("meta"):  # no weights are needed
        backbone = make_backbone(NetworkSettings(arch).arch)
    backbone.check_crop_size(crop_size)
    return backbone.resizing


@model_ingredient.capture
def get_model(num_classes: int, _config, **settings) -> RerankingNetwork:
    """The network for `num_classes` training classes, of `NetworkSettings`; inside a run those that are not given are
    the config's, elsewhere the defaults."""
    configured = {part.name: _config[part.name] for part in fields(NetworkSettings) if part.name in _config}
    return RerankingNetwork(num_classes, NetworkSettings(**configured | settings))


def load_model(
    num_classes: int,
    resume: Path | str | None,
    device: torch.device,
    training: bool = False,
    crop_size: int | None = None,
    **changes,
) -> tuple[RerankingNetwork, TrainingInfo]:
    """The configured network on `device`, with the weights of the checkpoint `resume` when there is one.

    Without one, settings of `get_model` may be changed. The origin is that of the checkpoint, with the settings that
    the network has now. A line says where it was trained on images of another size than `crop_size`.
    """
    origin = TrainingInfo({}, matcher_trained=False)
    if resume is None:
        model = get_model(num_classes, **changes)
        if not training and model.settings.pretrained and model.has_projections:
            print(
                "the backbone's channels are projected at random: model.num_global_features=None and "
                "model.num_local_features=None leave them as they are"
            )
    else:
        model = get_model(num_classes, pretrained=False)
        origin = load_weights(resume, model, training, model.settings.those("answers"))
        if crop_size is not None and origin.crop_size not in (None, crop_size):
            print(
                f"checkpoint {resume} was trained with dataset.crop_size={origin.crop_size}, not {crop_size}: its "
                "answers to images of another size may be worse"
            )
    return model.to(device, memory_format=torch.channels_last), origin._replace(model=model.settings.those("answers"))
