"""The `model` ingredient: from config to network."""

from pathlib import Path
from typing import Any

import torch
from sacred import Ingredient

from models.network import ANSWER_SETTINGS, make_network
from models.resnet import RerankingResNet
from utils.io.checkpoint import TrainingInfo, load_weights

model_ingredient = Ingredient("model", save_git_info=False)  # the commands note all modules


@model_ingredient.config
def config():
    arch = "resnet50"  # resnet18, resnet34, resnet50, resnet101 or resnet152
    pretrained = True  # start the trunk from torchvision's IMAGENET1K_V1 weights
    dropout = 0.0  # on the global descriptor, before the classifier
    norm_layer = None  # after average pooling: 'layer', 'batch' or None
    remap = False  # a linear layer before the global descriptor even when the sizes are equal
    detach = False  # the classifier sends no gradient to the trunk
    normalize = False  # L2-normalise the global descriptor
    set_bn_eval = True  # keep the trunk's batch norms in eval mode while training
    normalize_weight = False  # L2-normalise the classifier's rows
    freeze_backbone = False  # train remap_local and the matcher only
    num_global_features = 128
    num_local_features = 128  # also the matcher's width; a multiple of 4
    ert_seq_len = 102  # recorded only
    ert_dim_feedforward = 1024
    ert_nhead = 4
    ert_num_encoder_layers = 6
    ert_dropout = 0.0
    ert_activation = "relu"  # or 'gelu'
    ert_normalize_before = False  # pre-norm encoder with a final layer norm


@model_ingredient.named_config
def resnet50():
    arch = "resnet50"
    normalize = True


@model_ingredient.named_config
def demo():
    arch = "resnet18"
    pretrained = False
    normalize = True
    set_bn_eval = False
    ert_dim_feedforward = 256
    ert_nhead = 32
    ert_num_encoder_layers = 2
    ert_normalize_before = True  # learns at ten times the learning rate at which the post-norm encoder collapses


@model_ingredient.capture
def get_model(
    num_classes,
    arch,
    pretrained,
    dropout,
    norm_layer,
    remap,
    detach,
    normalize,
    set_bn_eval,
    normalize_weight,
    freeze_backbone,
    num_global_features,
    num_local_features,
    ert_seq_len,
    ert_dim_feedforward,
    ert_nhead,
    ert_num_encoder_layers,
    ert_dropout,
    ert_activation,
    ert_normalize_before,
) -> RerankingResNet:
    """`make_network` for `num_classes` training classes; inside a run, Sacred fills in the rest from the config."""
    return make_network(
        num_classes,
        arch=arch,
        pretrained=pretrained,
        dropout=dropout,
        norm_layer=norm_layer,
        remap=remap,
        detach=detach,
        normalize=normalize,
        set_bn_eval=set_bn_eval,
        normalize_weight=normalize_weight,
        freeze_backbone=freeze_backbone,
        num_global_features=num_global_features,
        num_local_features=num_local_features,
        ert_dim_feedforward=ert_dim_feedforward,
        ert_nhead=ert_nhead,
        ert_num_encoder_layers=ert_num_encoder_layers,
        ert_dropout=ert_dropout,
        ert_activation=ert_activation,
        ert_normalize_before=ert_normalize_before,
    )


@model_ingredient.capture
def answer_settings(_config) -> dict[str, Any]:
    """The settings that a checkpoint's answers depend on."""
    settings = {name: _config[name] for name in ANSWER_SETTINGS if name in _config}
    return settings | ({"arch": settings["arch"].lower()} if settings else {})


def load_model(
    num_classes: int,
    resume: Path | str | None,
    device: torch.device,
    training: bool = False,
    crop_size: int | None = None,
    **changes,
) -> tuple[RerankingResNet, TrainingInfo]:
    """The configured network on `device`, with the weights of the checkpoint `resume` when there is one.

    Without one, settings of `get_model` may be changed. The origin is that of the checkpoint, with the settings that
    the network has now. A line says where it was trained on images of another size than `crop_size`.
    """
    origin = TrainingInfo({}, matcher_trained=False)
    if resume is None:
        model = get_model(num_classes, **changes)
    else:
        model = get_model(num_classes, pretrained=False)
        origin = load_weights(resume, model, training, answer_settings())
        if crop_size is not None and origin.crop_size not in (None, crop_size):
            print(
                f"checkpoint {resume} was trained with dataset.crop_size={origin.crop_size}, not {crop_size}: its "
                "answers to images of another size may be worse"
            )
    return model.to(device, memory_format=torch.channels_last), origin._replace(model=answer_settings())
