import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.fused import convolution, linear


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize(("activation", "function"), [("none", lambda x: x), ("relu", F.relu), ("gelu", F.gelu)])
def test_linear(gradients, activation, function):
    x, weight, bias = torch.randn(3, 1, 7, 16)[:, 0], torch.randn(5, 16), torch.randn(5)
    for given in (x, x[:, :1], x[0]):
        with torch.set_grad_enabled(gradients):
            got = linear(given, weight, bias, activation)
        torch.testing.assert_close(got, function(given @ weight.T + bias), rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("added", [True, False])
@pytest.mark.parametrize("activation", ["none", "relu"])
def test_convolution(activation, added):
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=1)
    x, other = torch.randn(2, 4, 9, 7), torch.randn(2, 6, 5, 4) if added else None
    expected = conv(x) + (other if added else 0)
    got = convolution(x, conv, activation, other)
    torch.testing.assert_close(got, expected.relu() if activation == "relu" else expected, rtol=1e-5, atol=1e-5)
