from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models import fused, trunk
from models.fused import linear
from models.trunk import convolve_folded


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


@pytest.fixture
def untried():
    """oneDNN's operators are tried anew in the test, and after it."""
    trials = fused._onednn_multiplies_in, trunk._onednn_convolves_in
    for trial in trials:
        trial.cache_clear()
    yield
    for trial in trials:
        trial.cache_clear()


class Changed:
    """An operator with other arguments or answers than those that are asked for."""

    def __init__(self, answer=None):
        self.answer = answer

    def __call__(self, x, *rest):
        if self.answer is None:
            raise TypeError("unexpected argument")
        return torch.full_like(F.pad(x, (0, 0)), self.answer)

    binary = __call__


@torch.no_grad()
@pytest.mark.parametrize(
    ("operators", "reason"),
    [
        (SimpleNamespace(), "AttributeError"),
        (SimpleNamespace(_linear_pointwise=Changed(), _convolution_pointwise=Changed()), "TypeError: unexpected argum"),
        (SimpleNamespace(_linear_pointwise=Changed(9), _convolution_pointwise=Changed(9)), "of the largest off"),
    ],
)
def test_without_onednns_operators_plain_layers_serve(operators, reason, untried, monkeypatch, capsys):
    monkeypatch.setattr(torch.ops, "mkldnn", operators)
    conv, x, maps = nn.Conv2d(2, 2, 3, padding=1), torch.randn(3, 4), torch.randn(1, 2, 5, 4)
    weight, bias = torch.randn(4, 4), torch.randn(4)
    state = torch.get_rng_state()
    for _ in range(2):
        torch.testing.assert_close(linear(x, weight, bias, "relu"), (x @ weight.T + bias).relu())
        torch.testing.assert_close(linear(x, weight, bias, "none", x), x @ weight.T + bias + x)
        torch.testing.assert_close(convolve_folded(maps, conv, "relu", maps), (conv(maps) + maps).relu())
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" are computed without oneDNN's fused operator")[0] for line in lines] == [
        "linear layers",
        "convolutions",
    ]
    assert all(reason in line for line in lines)
    assert torch.equal(torch.get_rng_state(), state)


@torch.no_grad()
@pytest.mark.skipif(not torch.__version__.startswith("2.14"), reason="of the torch in requirements.txt")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_onednns_operators_are_used_where_they_answer(dtype, untried, capsys):
    if fused._onednn_knows(dtype):
        assert fused._onednn_multiplies_in(dtype)
        assert trunk._onednn_convolves_in(dtype)
    assert capsys.readouterr().out == ""
