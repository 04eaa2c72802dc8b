import numpy as np
import pytest
import torch
from torch.backends import cudnn
from torch.backends.cuda import matmul
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import MultiStepLR

from tests.narrow import narrow
from tests.reference import normal, published_model
from tests.utils.training.test_loop import Log, batches
from utils import BinaryCrossEntropyWithLogits, Contrastive
from utils.errors import InputError
from utils.retrieval.pair_scoring import rerank
from utils.runtime.precision import computes_in_bf16, set_precision
from utils.training.loop import train_global, train_rerank


@pytest.mark.parametrize(
    ("precision", "kind", "dtype", "tf32"),
    [
        (None, "cpu", torch.float32, False),
        (None, "cuda", torch.float32, True),
        ("fp32", "cuda", torch.float32, False),
        ("tf32", "cuda", torch.float32, True),
        ("bf16", "cpu", torch.bfloat16, False),
        ("fp16", "cuda", torch.float16, False),
    ],
)
def test_dtype_and_tf32(precision, kind, dtype, tf32):
    torch.backends.cuda.enable_cudnn_sdp(True)
    assert set_precision(precision, torch.device(kind)) == dtype
    assert [matmul.fp32_precision, cudnn.conv.fp32_precision] == ["tf32" if tf32 else "ieee"] * 2
    assert torch.backends.cuda.cudnn_sdp_enabled() == (kind == "cpu")


def test_emulated_bf16_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    with pytest.raises(InputError, match="precision=bf16: Tesla T4 only emulates it, set fp16 or fp32"):
        set_precision("bf16", torch.device("cuda"))


@pytest.mark.parametrize(
    ("capabilities", "expected"), [({}, False), ({"avx512_f": True}, False), ({"avx512_bf16": True}, True)]
)
def test_cpu_that_computes_in_bf16(capabilities, expected, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert computes_in_bf16(torch.device("cpu")) is expected


def test_unknown_precision():
    with pytest.raises(InputError, match=r"precision='int8' is unknown: choose from 'fp32', 'tf32', 'bf16', 'fp16'"):
        set_precision("int8", torch.device("cpu"))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
def test_half_precision_scores(dtype, tolerance, device):
    model, maps = published_model(6).eval().to(device), normal("half", 12, 128, 3, 3)
    neighbours = torch.arange(12).expand(12, 12)
    exact, positions = rerank(model, maps, maps, neighbours)
    scores, half_positions = rerank(model, maps.to(dtype), maps.to(dtype), neighbours)
    back = [np.take_along_axis(s, p.argsort(axis=1), axis=1) for s, p in ((exact, positions), (scores, half_positions))]
    assert np.abs(back[0] - back[1]).max() < tolerance * np.abs(exact).max()
    assert scores.dtype == np.float32
    assert len(np.unique(scores)) > 0.9 * len(np.unique(exact))  # logits are not rounded to half precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_training_follows_float32(dtype, device):
    losses = {}
    for number in (torch.float32, dtype):
        with narrow():
            model, log = published_model(6, arch="resnet18").to(device), Log()
        optimizer = SGD(model.parameters(), lr=0.001, momentum=0.9)
        scheduler = MultiStepLR(optimizer, [5])
        train_global(
            model,
            batches("half", 2, 6, torch.arange(6) // 2),
            Contrastive(temperature=0.05),
            optimizer,
            scheduler,
            0,
            log,
            number,
        )
        optimizer = AdamW(model.parameters(), lr=1e-4)
        loader = batches("halves", 2, 6, torch.arange(6))
        train_rerank(model, loader, BinaryCrossEntropyWithLogits(), optimizer, scheduler, 1, log, number)
        losses[number] = log.values("train.loss")
        assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert losses[dtype] == pytest.approx(losses[torch.float32], rel=0.05)
    assert losses[dtype] != losses[torch.float32]


@pytest.mark.parametrize("micro_batch", [None, 6])
def test_losses_and_gradients_are_exact_under_tf32(micro_batch, device):
    """With TF32 on, the loss and what it sends back at the descriptors are computed without, the backbone with it."""
    precisions = {"loss": [], "descriptors": [], "backbone": []}
    model = published_model(6, arch="resnet18").to(device)
    model.backbone.conv1.weight.register_hook(lambda gradient: precisions["backbone"].append(matmul.fp32_precision))

    class Noting(Contrastive):
        def forward(self, logits, features, labels):
            precisions["loss"].append(matmul.fp32_precision)
            features.register_hook(lambda gradient: precisions["descriptors"].append(matmul.fp32_precision))
            return super().forward(logits, features, labels)

    matmul.fp32_precision = "tf32"
    optimizer = SGD(model.parameters(), lr=0.001)
    loader = batches("digits", 1, 12, torch.arange(12) // 2)
    train_global(model, loader, Noting(), optimizer, MultiStepLR(optimizer, [5]), 0, micro_batch=micro_batch)
    assert precisions == {
        "loss": ["ieee"],
        "descriptors": ["ieee"],
        "backbone": ["tf32"] * (1 if micro_batch is None else 2),
    }
    assert matmul.fp32_precision == "tf32"


@torch.no_grad()
def test_head_and_readout_are_exact_under_tf32(monkeypatch, device):
    precisions, linear = {}, torch.nn.functional.linear
    model = published_model(6).eval().to(device)
    named = {model.remap.weight.data_ptr(): "head", model.matcher.classifier.weight.data_ptr(): "readout"}

    def noting(x, weight, bias=None):
        precisions[named.get(weight.data_ptr(), "other")] = matmul.fp32_precision
        return linear(x, weight, bias)

    monkeypatch.setattr(torch.nn.functional, "linear", noting)
    matmul.fp32_precision = "tf32"
    model.embedder()(torch.rand(2, 3, 64, 64, device=device))
    model.matcher.score(*torch.randn(2, 3, 4, 128, device=device))
    assert (precisions["head"], precisions["readout"], matmul.fp32_precision) == ("ieee", "ieee", "tf32")
