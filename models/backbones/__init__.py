"""The backbones that `model.arch` names: those of `BACKBONES`, all others timm's.

One more is a file with a `Backbone`, and its row in the table.
"""

from collections.abc import Callable
from pathlib import Path

from models.backbones.backbone import Backbone
from models.backbones.resnet import BLOCKS, ResNetBackbone
from models.backbones.timm import TimmBackbone
from utils.errors import InputError

BACKBONES: dict[str, Callable[[str, bool | str], Backbone]] = dict.fromkeys(BLOCKS, ResNetBackbone)


def make_backbone(arch: str, pretrained: bool | str = False) -> Backbone:
    """The backbone `arch`, with its pretrained weights, those of a file, or as it is before training.

    InputError for an unknown one, and where pretrained weights cannot be had.
    """
    if isinstance(pretrained, str) and not Path(pretrained).exists():
        raise InputError(f"model.pretrained={pretrained!r} does not exist: give a file of weights, True or False")
    return BACKBONES.get(arch, TimmBackbone)(arch, pretrained)
