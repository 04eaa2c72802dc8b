"""The fused GPU kernel: its answers, by Triton's interpreter where there is no GPU, and what is built of it."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from benchmarks import reference
from models import encoder_layer, fused
from models.matcher import Matcher
from tests import ROOT

pytest.importorskip("triton")
from models import kernel

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# the interpreter has no products in bfloat16
HALVES = [torch.float16, torch.bfloat16] if DEVICE.type == "cuda" else [torch.float16]


@pytest.fixture(autouse=True)
def on_a_card_of_today(monkeypatch):
    if DEVICE.type == "cpu":
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))


def layer_in(dtype, d=32, hidden=128, norm_first=False, activation="relu") -> nn.TransformerEncoderLayer:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(
        d, 2, hidden, 0.0, activation, batch_first=True, norm_first=norm_first, device=DEVICE
    )
    for parameter in layer.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    for module in (layer.self_attn, layer.linear1, layer.linear2):
        module.to(dtype)
    return layer.eval()


@torch.no_grad()
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize(
    ("batch", "length", "d", "hidden"), [(1, 1, 16, 64), (3, 100, 32, 192), (1, 102, 128, 1024), (129, 1, 64, 64)]
)
def test_what_follows_attention(batch, length, d, hidden, norm_first, dtype):
    layer = layer_in(dtype, d, hidden, norm_first)
    tokens, attended = torch.randn(2, batch, length + 1, d, device=DEVICE)[:, :, :length]  # with gaps between
    found = kernel.after_attention(layer, tokens, attended.to(dtype))

    def product(x, part):
        return x.to(dtype).double() @ part.weight.double().T + part.bias.double()

    def normed(x, part):
        x = x - x.mean(dim=-1, keepdim=True)
        return x / (x.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt() * part.weight + part.bias

    expected = tokens.double() + product(attended, layer.self_attn.out_proj)
    if not norm_first:
        expected = normed(expected, layer.norm1)
    inner = normed(expected, layer.norm2) if norm_first else expected
    expected = expected + product(product(inner, layer.linear1).relu(), layer.linear2)
    if not norm_first:
        expected = normed(expected, layer.norm2)
    tolerance = float(expected.abs().max()) * (1e-3 if dtype == torch.float16 else 1e-2)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerance)


@torch.inference_mode()
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("norm_first", [False, True])
def test_the_matcher_by_the_kernel(norm_first, dtype, monkeypatch):
    monkeypatch.setattr(encoder_layer, "_suits_kernel", lambda layer, attended: True)
    monkeypatch.setattr(fused, "_usable", {})
    monkeypatch.setattr(fused, "_told", set())
    used, launch = [], kernel.after_attention
    monkeypatch.setattr(kernel, "after_attention", lambda *given: used.append(given[1].shape) or launch(*given))
    matcher = Matcher(32, 2, 3, 128, normalize_before=norm_first).eval().to(DEVICE)
    query, candidate = torch.randn(12, 32, 2, 3, device=DEVICE), torch.randn(12, 32, 1, 2, device=DEVICE)
    found = matcher.computing_in(dtype)(None, query, None, candidate)
    expected = reference.score(matcher, query, candidate)
    tolerance = 0.01 if dtype == torch.float16 else 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * float(expected.abs().max()))
    assert used == [(8, 10, 32), (12, 10, 32), (12, 10, 32), (12, 1, 32)]  # a trial, then the layers


@torch.no_grad()
@pytest.mark.parametrize(
    ("changes", "fails", "line"),
    [
        ({"d": 24}, None, ""),
        ({"hidden": 40}, None, ""),
        ({"activation": "gelu"}, None, ""),
        ({}, RuntimeError("no C compiler\nIn detail"), "without the fused kernel: RuntimeError: no C compiler"),
        ({}, 1.2, "without the fused kernel, which is 0.2 of the largest off"),
        ({}, float("nan"), "without the fused kernel, which is nan of the largest off"),
    ],
)
def test_layers_that_it_does_not_compute(changes, fails, line, monkeypatch, capsys):
    layer = layer_in(torch.float16, **changes)
    tokens = torch.randn(9, 5, layer.linear1.in_features, device=DEVICE)
    expected = layer.norm2(layer.norm1(tokens))

    def launch(*given):
        if isinstance(fails, Exception):
            raise fails
        return fails * expected[:8]

    monkeypatch.setattr(fused, "_usable", {})
    monkeypatch.setattr(fused, "_told", set())
    monkeypatch.setattr(kernel, "after_attention", launch)
    for _ in range(2):
        assert not kernel.computes(layer, tokens, tokens.half(), lambda layer, tokens, attended: expected[:8])
    printed = capsys.readouterr().out.splitlines()
    assert [text.endswith(line) for text in printed] == ([True] if line else [])


@torch.no_grad()
def test_cards_that_lack_the_memory_are_not_compiled_for(monkeypatch):
    monkeypatch.setattr(fused, "_usable", {})
    monkeypatch.setattr(kernel, "after_attention", lambda *_: pytest.fail("launched"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    tokens = torch.randn(9, 5, 32, device=DEVICE)
    assert not kernel.computes(layer_in(torch.float16), tokens, tokens.half(), lambda *_: pytest.fail("tried"))


def test_what_it_is_not_for():
    layer, attended = layer_in(torch.float16), torch.zeros(1, 2, 32, dtype=torch.float16, device=DEVICE)
    assert not encoder_layer._suits_kernel(layer, attended)  # with gradients
    with torch.no_grad():
        assert encoder_layer._suits_kernel(layer, attended) == (DEVICE.type == "cuda")
        assert not encoder_layer._suits_kernel(layer, attended.float())
        assert not encoder_layer._suits_kernel(layer.train(), attended)


BUILD = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from models import kernel

fixed = {"D": 128, "HIDDEN": 1024, "ROWS": kernel.ROWS, "COLUMNS": kernel.COLUMNS, "NORM_FIRST": False}
types = {"tokens": "*fp32", "out": "*fp32", "rows": "i32", "eps": "fp32"} | dict.fromkeys(fixed, "constexpr")
names = kernel._after_attention.arg_names
signature = {name: types.get(name, "*fp32" if name.startswith("norm") else "*bf16") for name in names}
aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if signature[name][0] == "*"}
for capability in (80, 90):
    source = ASTSource(kernel._after_attention, signature, fixed, aligned)
    built = triton.compile(source, GPUTarget("cuda", capability, 32), kernel.LAUNCH)
    print(capability, built.metadata.shared, "wgmma" in built.asm["ptx"], len(built.asm["cubin"]) > 0)
"""


def test_built_for_gpus(tmp_path):
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    built = subprocess.run([sys.executable, "-c", BUILD], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    memory = {}
    for line in built.stdout.splitlines():
        capability, shared, warpgroups, binary = line.split()
        memory[int(capability)] = int(shared)
        assert (warpgroups, binary) == (str(capability == "90"), "True")
    assert memory[80] <= 99 << 10  # bytes that a program may take: 99 KiB on the smallest, 227 KiB on an H100
    assert memory[90] <= 227 << 10
