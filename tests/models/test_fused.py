import pytest
import torch
import torch.nn.functional as F

from models.fused import linear


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize(("activation", "function"), [("none", lambda x: x), ("relu", F.relu), ("gelu", F.gelu)])
def test_linear(gradients, activation, function):
    x, weight, bias = torch.randn(3, 1, 7, 16)[:, 0], torch.randn(5, 16), torch.randn(5)
    others = torch.randn(3, 2, 7, 5)[:, 0]
    for given, other in ((x, others), (x[:, :1], others[:, :1]), (x[0], others[0])):
        expected, before = function(given @ weight.T + bias), other.clone()
        with torch.set_grad_enabled(gradients):
            got, plus = linear(given, weight, bias, activation), linear(given, weight, bias, activation, other)
            half = linear(given, weight, bias, activation, other.half())
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(plus, expected + other, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(half, expected + other.half(), rtol=1e-5, atol=1e-5)
        assert torch.equal(other, before)
