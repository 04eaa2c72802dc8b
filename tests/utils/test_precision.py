import numpy as np
import pytest
import torch
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import MultiStepLR

from tests.reference import normal, published_model
from tests.utils.test_training import Log, batches
from utils import BinaryCrossEntropyWithLogits, Contrastive
from utils.errors import InputError
from utils.precision import set_precision
from utils.reranking import rerank
from utils.training import train_global, train_rerank

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def tf32_as_before():
    backends = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [backend.allow_tf32 for backend in backends]
    yield
    for backend, allowed in zip(backends, before, strict=True):
        backend.allow_tf32 = allowed


@pytest.mark.parametrize(
    ("precision", "device", "dtype", "tf32"),
    [
        (None, CPU, torch.float32, False),
        (None, CUDA, torch.float32, True),
        ("fp32", CUDA, torch.float32, False),
        ("tf32", CUDA, torch.float32, True),
        ("bf16", CPU, torch.bfloat16, False),
        ("fp16", CUDA, torch.float16, False),
    ],
)
def test_choice(precision, device, dtype, tf32):
    assert set_precision(precision, device) == dtype
    assert torch.backends.cuda.matmul.allow_tf32 == torch.backends.cudnn.allow_tf32 == tf32


def test_unknown():
    with pytest.raises(InputError, match=r"precision='int8' is unknown: choose from 'fp32', 'tf32', 'bf16', 'fp16'"):
        set_precision("int8", CPU)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
def test_half_precision_scores(dtype, tolerance):
    model, maps = published_model(6).eval(), normal("half", 12, 128, 3, 3)
    neighbours = torch.arange(12).expand(12, 12)
    exact, positions = rerank(model, maps, maps, neighbours)
    scores, half_positions = rerank(model, maps.to(dtype), maps.to(dtype), neighbours)
    back = [np.take_along_axis(s, p.argsort(axis=1), axis=1) for s, p in ((exact, positions), (scores, half_positions))]
    assert np.abs(back[0] - back[1]).max() < tolerance * np.abs(exact).max()
    assert scores.dtype == np.float32
    assert len(np.unique(scores)) > 0.9 * len(np.unique(exact))  # logits are not rounded to half precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_training_follows_float32(dtype):
    losses = {}
    for number in (torch.float32, dtype):
        model, log = published_model(6, arch="resnet18"), Log()
        optimizer = SGD(model.parameters(), lr=0.001, momentum=0.9)
        scheduler = MultiStepLR(optimizer, [5])
        train_global(
            model,
            batches("half", 2, 12, torch.arange(12) // 2),
            Contrastive(temperature=0.05),
            optimizer,
            scheduler,
            0,
            log,
            number,
        )
        optimizer = AdamW(model.parameters(), lr=1e-4)
        loader = batches("halves", 2, 9, torch.arange(9))
        train_rerank(model, loader, BinaryCrossEntropyWithLogits(), optimizer, scheduler, 1, log, number)
        losses[number] = log.values("train.loss")
        assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert losses[dtype] == pytest.approx(losses[torch.float32], rel=0.05)
    assert losses[dtype] != losses[torch.float32]
