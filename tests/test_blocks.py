"""The trunk's own walk over its blocks is torchvision's, with the same gradients."""

import copy

import pytest
import torch

from tests.reference import published_model


@pytest.mark.parametrize("set_bn_eval", [True, False])
@pytest.mark.parametrize(
    ("arch", "dtype", "tolerance"),
    [("resnet18", torch.double, 1e-9), ("resnet50", torch.double, 1e-9), ("resnet18", torch.float, 1e-4)],
)
def test_equals_torchvision(arch, dtype, tolerance, set_bn_eval):
    model = published_model(6, arch=arch, set_bn_eval=set_bn_eval).to(dtype).train()
    plain, images = copy.deepcopy(model), torch.rand(3, 3, 64, 96, dtype=dtype)
    x = plain.maxpool(plain.relu(plain.bn1(plain.conv1(plain.pixels(images)))))
    expected, found = plain.layer4(plain.layer3(plain.layer2(plain.layer1(x)))), model.layer_features(images)
    atol = 1e-7 if dtype == torch.double else tolerance * float(expected.detach().abs().max())
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=atol)
    for features in (found, expected):
        (features * torch.linspace(-1, 1, features.numel(), dtype=dtype).view_as(features)).sum().backward()
    compared = 0
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None)
        if ours.grad is not None:
            atol = tolerance * float(theirs.grad.abs().max())
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=atol)
            compared += 1
    assert compared == {"resnet18": 60, "resnet50": 159}[arch]
    for ours, theirs in zip(model.buffers(), plain.buffers(), strict=True):
        assert torch.equal(ours, theirs)
