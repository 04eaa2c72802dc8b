"""`model.pool`: what the global descriptor is made of."""

import pytest
import torch
import torch.nn.functional as F

from models.backbones.timm import TimmBackbone
from models.settings import NetworkSettings
from rrt.reranker import Reranker
from tests.models.test_timm import network_of
from tests.reference import pixels
from utils.errors import InputError


def token(network, x):
    return network.forward_features(x)[:, 0]


def head(network, x):
    return network.forward_head(network.forward_features(x), pre_logits=True)


CASES = [
    ("test_vit", "token", 64, token),
    ("test_vit", "head", 64, token),
    ("deit_tiny_distilled_patch16_224", "token", 192, token),
    ("xcit_nano_12_p16_224", "token", 128, token),
    ("test_vit3", "head", 96, head),  # attention pools
    ("tf_efficientnet_lite0", "head", 1280, head),  # a convolution of the maps first
    ("hrnet_w18_small", "head", 2048, head),
]


@pytest.mark.parametrize(("arch", "pool", "size", "formula"), CASES)
@torch.no_grad()
def test_descriptors(arch, pool, size, formula):
    network = network_of(arch, pool=pool, normalize=True)
    assert network.settings.num_global_features == size
    images = pixels("pool", 2, 3, 64, 64)
    _, descriptors, maps = network(images)
    expected = formula(network.backbone.network, network.pixels(images))
    torch.testing.assert_close(descriptors, F.normalize(expected, dim=1), rtol=1e-4, atol=1e-5)
    averaged = network_of(arch, normalize=True)
    other = averaged(images)
    assert torch.equal(other[2], maps) and (
        other[1].shape != descriptors.shape or not torch.equal(other[1], descriptors)
    )
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 0.1)):
        embedded, embedded_maps = network.embedder(dtype)(images)
        torch.testing.assert_close(embedded, descriptors, rtol=tolerance, atol=tolerance)
        assert embedded.dtype == torch.float32 and embedded_maps.dtype == dtype
        assert torch.equal(network.embedder(dtype).layer_features(images), embedded_maps)


def test_the_backbone_is_computed_once(monkeypatch):
    network, calls = network_of("test_vit", pool="token"), []
    patch_embed = network.backbone.network.patch_embed
    patch_embed.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        network(pixels("pool", 2, 3, 64, 64))
        network.embedder()(pixels("pool", 2, 3, 64, 64))
    assert len(calls) == 2
    monkeypatch.setattr(TimmBackbone, "maps_and_pooled", lambda *_: pytest.fail("not needed for local maps"))
    network.layer_features(pixels("pool", 2, 3, 64, 64))


@pytest.mark.parametrize("pool", ["token", "head"])
def test_gradients_reach_the_class_token(pool):
    network = network_of("test_vit", pool=pool).train()
    network(pixels("pool", 2, 3, 64, 64))[1].square().sum().backward()
    gradient = network.backbone.network.pos_embed.grad
    assert network.backbone.network.cls_token.grad.abs().sum() > 0 and gradient.isfinite().all()


@pytest.mark.parametrize(
    ("arch", "pool", "message"),
    [
        ("test_vit2", "token", "model.pool='token': test_vit2 has no class token, take 'avg' or 'head'"),
        ("tf_efficientnet_lite0", "token", "model.pool='token': tf_efficientnet_lite0 has no class token"),
        ("resnet18", "token", "model.pool='token': this backbone has no other vector than its maps' mean, 'avg'"),
        ("resnet18", "head", "model.pool='head': this backbone has no other vector"),
    ],
)
def test_what_a_backbone_does_not_know(arch, pool, message):
    for sizes in ({}, {"num_global_features": 16, "num_local_features": 16}):
        with pytest.raises(InputError, match=message):
            network_of(arch, pool=pool, **sizes)


def test_what_was_made_without_the_setting_stays_the_same():
    def prints(**changes):
        network = network_of("test_vit", **changes)
        return next(network.fingerprint()), Reranker(network, network.settings.those("answers"), 64).digest()

    assert b"'pool'" not in prints()[0] and b"'pool': 'token'" in prints(pool="token")[0]
    assert prints()[1] != prints(pool="token")[1]
    network = network_of("test_vit")
    older = {name: value for name, value in network.settings.those("answers").items() if name != "pool"}
    assert Reranker(network, older, 64).digest() == prints()[1]
    assert NetworkSettings().pool == "avg"
