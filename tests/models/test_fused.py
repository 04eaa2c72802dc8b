from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models import fused
from models.backbones import resnet
from models.backbones.resnet import convolve_folded
from models.fused import linear
from tests.conftest import CUDA


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
    trials = fused._onednn_multiplies_in, resnet._onednn_convolves_in
    fused._told.clear()
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
        assert resnet._onednn_convolves_in(dtype)
    assert capsys.readouterr().out == ""


@pytest.fixture
def as_on_gpu(monkeypatch):
    """What is done on a GPU, on the CPU; each operation is tried anew. cuDNN's operators, which no CPU has, by plain
    ones."""

    def convolution(x, weight, bias, *shape):
        used.append(len(x))
        return F.conv2d(x, weight, bias, *shape).relu()

    def convolution_and_added(x, weight, added, alpha, bias, *shape):
        used.append(len(x))
        return (F.conv2d(x, weight, bias, *shape) + alpha * added).relu()

    used: list[int] = []
    monkeypatch.setattr(torch, "cudnn_convolution_relu", convolution)
    monkeypatch.setattr(torch, "cudnn_convolution_add_relu", convolution_and_added)
    for module in (fused, resnet):
        monkeypatch.setattr(module, "suits_onednn", lambda *_: False)
        monkeypatch.setattr(module, "suits_gpu", lambda x: not torch.is_grad_enabled())
    monkeypatch.setattr(fused, "_usable", {})
    monkeypatch.setattr(fused, "_told", set())
    return used


@torch.no_grad()
def test_convolutions_of_a_gpu_are_fused_with_what_follows(as_on_gpu, capsys):
    conv, maps = nn.Conv2d(4, 4, 3, padding=1), torch.randn(9, 4, 5, 4)
    for activation, added, calls in (("relu", None, 3), ("relu", maps, 3), ("none", maps, 0), ("none", None, 0)):
        as_on_gpu.clear()
        expected = conv(maps) if added is None else conv(maps) + added
        expected = expected.relu() if activation == "relu" else expected
        for _ in range(2):
            torch.testing.assert_close(convolve_folded(maps, conv, activation, added), expected)
        assert as_on_gpu == [8, 9, 9][:calls]  # a trial on eight images, then all
    assert capsys.readouterr().out == ""


@torch.no_grad()
@pytest.mark.parametrize(
    ("fails", "line"),
    [
        (lambda *_: 1 / 0, "convolutions of 4 channels are computed without cuDNN's ReLU: ZeroDivisionError: div"),
        (
            lambda x, *_: torch.full_like(x, float("nan")),
            "convolutions of 4 channels are computed without cuDNN's ReLU, which is nan of the largest off",
        ),
    ],
)
def test_without_cudnns_operators_plain_convolutions_serve(fails, line, as_on_gpu, monkeypatch, capsys):
    monkeypatch.setattr(torch, "cudnn_convolution_relu", fails)
    for size in (1, 3):
        conv, maps = nn.Conv2d(4, 4, size, padding=size // 2), torch.randn(2, 4, 5, 4)
        torch.testing.assert_close(convolve_folded(maps, conv, "relu"), conv(maps).relu())
    (printed,) = capsys.readouterr().out.splitlines()
    assert printed.startswith(line)


@torch.no_grad()
def test_deterministic_convolutions_are_plain(as_on_gpu, monkeypatch):
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    conv, maps = nn.Conv2d(4, 4, 1), torch.randn(2, 4, 5, 4)
    torch.testing.assert_close(convolve_folded(maps, conv, "relu"), conv(maps).relu())
    assert as_on_gpu == []


def test_linear_layers_of_a_gpu_have_relu_in_the_product(as_on_gpu, monkeypatch):
    used, multiply = [], torch._addmm_activation

    def counted(bias, x, weight):
        used.append(len(x))
        return multiply(bias, x, weight)

    monkeypatch.setattr(torch, "_addmm_activation", counted)
    x, weight, bias = torch.randn(10, 3, 16)[:, :2], torch.randn(5, 16, requires_grad=True), torch.randn(5)
    expected = (x @ weight.T + bias).relu()
    torch.testing.assert_close(linear(x, weight, bias, "relu"), expected)
    assert used == []  # with gradients
    with torch.no_grad():
        torch.testing.assert_close(linear(x, weight, bias, "relu"), expected)
        torch.testing.assert_close(linear(x, weight, bias, "gelu"), F.gelu(x @ weight.T + bias))
        torch.testing.assert_close(linear(x, weight, bias, "relu", x[..., :5]), expected + x[..., :5])
    assert used == [16, 20, 20]  # a trial on eight pairs, then all


@torch.no_grad()
@pytest.mark.parametrize("device", [CUDA])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_gpus_operations_are_used_where_they_answer(device, dtype, monkeypatch, capsys):
    monkeypatch.setattr(fused, "_usable", {})
    monkeypatch.setattr(fused, "_told", set())
    conv = nn.Conv2d(64, 64, 3, padding=1).to(device, dtype, memory_format=torch.channels_last)
    maps = torch.randn(9, 64, 14, 14, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
    for added in (None, maps):
        found, plain = convolve_folded(maps, conv, "relu", added), conv(maps) if added is None else conv(maps) + added
        torch.testing.assert_close(found, plain.relu(), rtol=0.02, atol=0.02)
    x, weight, bias = (torch.randn(*shape, device=device, dtype=dtype) for shape in ((9, 5, 32), (64, 32), (64,)))
    torch.testing.assert_close(linear(x, weight, bias, "relu"), (x @ weight.T + bias).relu(), rtol=0.02, atol=0.05)
    assert list(fused._usable.values()) == [True] * 3
    assert capsys.readouterr().out == ""
