"""timm's networks as backbones: their maps by a second formula each, and what the network makes of these."""

import subprocess
import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from models.backbones import make_backbone
from models.network import RerankingNetwork
from models.settings import NetworkSettings
from tests import ROOT
from tests.reference import pixels
from utils.errors import InputError
from utils.training.losses import Contrastive
from utils.training.steps import global_step


class Family(NamedTuple):
    """A network, the side of an image, the shape of its maps, and a plain formula of them."""

    arch: str
    size: int
    shape: tuple[int, int, int]
    formula: Callable[..., Tensor]


def whole(network, x: Tensor) -> Tensor:
    return network.forward_features(x)


def patches(prefix: int) -> Callable[..., Tensor]:
    """The tokens of `forward_features` behind so many others, as a square."""

    def formula(network, x: Tensor) -> Tensor:
        tokens = network.forward_features(x)[:, prefix:].mT
        side = round(tokens.shape[-1] ** 0.5)
        return tokens.unflatten(-1, (side, side))

    return formula


def channels_last(network, x: Tensor) -> Tensor:
    return network.forward_features(x).permute(0, 3, 1, 2)


def last_branch(network, x: Tensor) -> Tensor:
    x = network.act1(network.bn1(network.conv1(x)))
    return network.incre_modules[3](network.stages(network.act2(network.bn2(network.conv2(x))))[3])


def before_the_head(network, x: Tensor) -> Tensor:
    """The maps whose head convolution is `forward_features`."""
    maps = network.blocks(network.bn1(network.conv_stem(x)))
    torch.testing.assert_close(network.bn2(network.conv_head(maps)), network.forward_features(x))
    return maps


FAMILIES = [
    Family("convnext_atto", 64, (320, 2, 2), whole),
    Family("test_vit", 64, (64, 4, 4), patches(1)),  # a class token
    Family("deit_tiny_distilled_patch16_224", 64, (192, 4, 4), patches(2)),  # that, and a distillation token
    Family("test_vit2", 64, (64, 4, 4), patches(1)),  # a register
    Family("vit_small_patch14_reg4_dinov2", 56, (384, 4, 4), patches(5)),  # a class token and registers
    Family("vit_base_patch16_siglip_224", 32, (768, 2, 2), patches(0)),
    Family("swin_tiny_patch4_window7_224", 224, (768, 7, 7), channels_last),
    Family("hrnet_w18_small", 64, (1024, 2, 2), last_branch),
    Family("inception_v3", 96, (2048, 1, 1), whole),
    Family("levit_128s", 224, (384, 4, 4), patches(0)),
    Family("tf_efficientnet_lite0", 64, (320, 2, 2), before_the_head),
    Family("mobilenetv3_small_050", 64, (288, 2, 2), whole),
    Family("regnetx_002", 64, (368, 2, 2), whole),
    Family("xcit_nano_12_p16_224", 64, (128, 4, 4), patches(1)),
    Family("beit_base_patch16_224", 224, (768, 14, 14), patches(1)),
]


@pytest.mark.parametrize("family", FAMILIES, ids=[family.arch for family in FAMILIES])
@torch.no_grad()
def test_maps(family):
    backbone = make_backbone(family.arch).eval()
    assert backbone.channels == family.shape[0]
    x = pixels("timm", 2, 3, family.size, family.size) * 2 - 1
    maps = backbone(x)
    assert maps.shape[1:] == family.shape
    tolerance = {"rtol": 1e-4, "atol": 1e-5 * maps.abs().max().item()}
    torch.testing.assert_close(maps, family.formula(backbone.network, x), **tolerance)
    copied = backbone.evaluation_copy(torch.float32)
    torch.testing.assert_close(copied(x.contiguous(memory_format=torch.channels_last)), maps, **tolerance)
    half = backbone.evaluation_copy(torch.bfloat16)(x.bfloat16())
    assert half.dtype == torch.bfloat16
    assert F.cosine_similarity(half.float().flatten(1), maps.flatten(1)).min() > 0.99
    for tensor in backbone.state_dict().values():
        tensor.zero_()
    torch.testing.assert_close(copied(x), maps, **tolerance)


def network_of(arch: str, **changes) -> RerankingNetwork:
    own = {"num_global_features": None, "num_local_features": None, "ert_num_encoder_layers": 1}
    torch.manual_seed(0)
    return RerankingNetwork(3, NetworkSettings(arch, pretrained=False, **own | changes)).eval()


@torch.no_grad()
def test_local_maps_are_pooled_and_the_global_descriptor_is_the_mean_of_all():
    images = pixels("timm", 2, 3, 160, 128)
    pooled, native = network_of("test_vit"), network_of("test_vit", local_size=0)
    maps = native.backbone(native.pixels(images))
    assert maps.shape == (2, 64, 10, 8) and pooled.settings.num_local_features == 64
    logits, descriptors, local = native(images)
    assert torch.equal(local, maps)
    torch.testing.assert_close(descriptors, maps.mean((2, 3)))
    other = pooled(images)
    assert torch.equal(other[0], logits) and torch.equal(other[1], descriptors)
    torch.testing.assert_close(other[2], F.adaptive_avg_pool2d(maps, 7))
    nine = network_of("test_vit", local_size=9)(images)[2]
    torch.testing.assert_close(nine, F.adaptive_avg_pool2d(maps, (9, 8)))
    for network in (pooled, native):
        embedded = network.embedder()(images)
        expected = network(images)[1:]
        for got, wanted in zip(embedded, expected, strict=True):
            torch.testing.assert_close(got, wanted)


def test_resnets_keep_their_maps():
    network = network_of("resnet18")
    with torch.no_grad():
        assert network(pixels("timm", 1, 3, 256, 256))[2].shape == (1, 512, 8, 8)


def test_pixels_are_those_of_the_data_config():
    network = network_of("tf_efficientnet_lite0")
    assert network.mean.flatten().tolist() == network.std.flatten().tolist() == [0.5] * 3
    assert network.backbone.resizing == {"interpolation": "bicubic", "crop_fraction": 0.875, "keeps_aspect": True}
    assert network_of("test_resnet").backbone.resizing["interpolation"] == "bilinear"


@pytest.mark.parametrize(
    ("arch", "size", "fitting"),
    [
        ("vit_small_patch14_dinov2", 256, "252 or 266 or 518"),
        ("test_vit", 100, "96 or 112 or 160"),
        ("levit_128s", 256, "224"),
        ("beit_base_patch16_224", 160, "224"),
    ],
)
def test_crops_that_do_not_fit(arch, size, fitting):
    with torch.device("meta"):
        backbone = make_backbone(arch)
    with pytest.raises(InputError, match=rf"crop_size={size} does not fit {arch}: take {fitting}$"):
        backbone.check_crop_size(size)
    sizes = list(map(int, fitting.split(" or ")))
    for taken in sizes:
        backbone.check_crop_size(taken)
    assert backbone.crop_size_near(size) == min(sizes, key=lambda taken: abs(taken - size))


def test_kept_features_notice_another_size_of_maps():
    prints = [list(network_of("test_vit", local_size=size).fingerprint()) for size in (None, None, 0, 7)]
    assert prints[0] == prints[1] and prints[0] != prints[2] != prints[3]


def test_batch_norms_stay_as_they_are():
    """timm's batch norm with an activation is one, too."""

    def modes(**changes):
        modules = network_of("tf_efficientnet_lite0", **changes).train().backbone.modules()
        return {type(m).__name__: m.training for m in modules if isinstance(m, nn.modules.batchnorm._BatchNorm)}

    assert modes() == {"BatchNormAct2d": False}
    assert modes(set_bn_eval=False) == {"BatchNormAct2d": True}
    assert modes(set_bn_eval=False, freeze_backbone=True) == {"BatchNormAct2d": False}


def test_micro_batches_refuse_what_a_network_draws():
    network = network_of("test_vit")
    global_step(network, Contrastive(0.1), micro_batch=2)
    network.backbone.network.blocks[0].drop_path1 = DropPath(0.1)
    with pytest.raises(InputError, match="micro_batch=2 needs each image to be embedded by itself and alike"):
        global_step(network, Contrastive(0.1), micro_batch=2)


def test_torchvisions_networks_need_no_timm():
    code = (
        "import sys, rrt, models.ingredient as i; sys.modules['timm'] = None; i.get_model(3, arch='resnet18', "
        "pretrained=False); assert not any(name.startswith('timm') for name in sys.modules if name != 'timm')"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_without_timm(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    for arch in ("test_vit", "hf-hub:someone/some", "vgg"):
        with pytest.raises(InputError, match=r"^model\.arch: resnet18 to .*, all others timm's: pip install timm$"):
            make_backbone(arch)
