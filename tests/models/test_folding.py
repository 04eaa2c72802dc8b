"""The backbone's own walk over its blocks is torchvision's, with the same gradients."""

import copy

import pytest
import torch
from torch import nn

from models.backbones.resnet import convolve_folded
from tests.reference import META, published_model


@pytest.mark.parametrize("set_bn_eval", [True, False])
@pytest.mark.parametrize(
    ("arch", "dtype", "tolerance"),
    [("resnet18", torch.double, 1e-9), ("resnet50", torch.double, 1e-9), ("resnet18", torch.float, 1e-4)],
)
def test_equals_torchvision(arch, dtype, tolerance, set_bn_eval):
    model = published_model(6, arch=arch, set_bn_eval=set_bn_eval).to(dtype).train()
    other, images = copy.deepcopy(model), torch.rand(3, 3, 64, 96, dtype=dtype)
    plain = other.backbone
    x = plain.maxpool(plain.relu(plain.bn1(plain.conv1(other.pixels(images)))))
    expected, found = plain.layer4(plain.layer3(plain.layer2(plain.layer1(x)))), model.layer_features(images)
    atol = 1e-7 if dtype == torch.double else tolerance * float(expected.detach().abs().max())
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=atol)
    for features in (found, expected):
        (features * torch.linspace(-1, 1, features.numel(), dtype=dtype).view_as(features)).sum().backward()
    compared = 0
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None)
        if ours.grad is not None:
            atol = tolerance * float(theirs.grad.abs().max())
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=atol)
            compared += 1
    assert compared == {"resnet18": 60, "resnet50": 159}[arch]
    for ours, theirs in zip(model.buffers(), other.buffers(), strict=True):
        assert torch.equal(ours, theirs)


@torch.no_grad()
@pytest.mark.parametrize("added", [True, False])
@pytest.mark.parametrize("activation", ["none", "relu"])
def test_convolution(activation, added):
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=1)
    x, other = torch.randn(2, 4, 9, 7), torch.randn(2, 6, 5, 4) if added else None
    expected = conv(x) + (other if added else 0)
    got = convolve_folded(x, conv, activation, other)
    torch.testing.assert_close(got, expected.relu() if activation == "relu" else expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
@pytest.mark.parametrize("variant", META["variants"])
def test_descriptors_equal_the_networks(variant, arch, device):
    model = published_model(9, **META["variants"][variant] | {"arch": arch}).eval().to(device)
    images = torch.randint(0, 256, (3, 3, 96, 64), dtype=torch.uint8, device=device)
    with torch.no_grad():
        _, expected_global, expected_local = model(images)
    for pixels in (images, images.float() / 255):
        found_global, found_local = model.embedder()(pixels)
        for found, expected in ((found_global, expected_global), (found_local, expected_local)):
            atol = (2e-5 if device.type == "cpu" else 2e-4) * float(expected.abs().max())
            torch.testing.assert_close(found, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    model = published_model(9, arch="resnet18").eval()
    images = torch.rand(2, 3, 64, 64)
    exact, half = model.embedder()(images), model.embedder(dtype)(images)
    assert [part.dtype for part in half] == [torch.float32, dtype]
    for a, b in zip(exact, half, strict=True):
        assert (a - b.float()).abs().max() < 0.05 * a.abs().max()


def test_the_network_stays_as_it_was():
    model = published_model(9, arch="resnet18", set_bn_eval=False).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    embedder = model.embedder(torch.bfloat16)
    embedder(torch.rand(2, 3, 64, 64))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.backbone.bn1.training
