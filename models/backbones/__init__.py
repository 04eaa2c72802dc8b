"""The backbones that `model.arch` names. One more is a file with a `Backbone`, and its row in `BACKBONES`."""

from collections.abc import Callable

from models.backbones.backbone import Backbone
from models.backbones.resnet import BLOCKS, ResNetBackbone
from utils.errors import choose

BACKBONES: dict[str, Callable[[str, bool], Backbone]] = dict.fromkeys(BLOCKS, ResNetBackbone)


def make_backbone(arch: str, pretrained: bool) -> Backbone:
    """The backbone `arch`; InputError for an unknown one, and where pretrained weights cannot be fetched."""
    return choose(BACKBONES, arch, "model.arch")(arch, pretrained)
