"""Forward passes, losses and scalers on CUDA tensors without numbers, on any machine: do devices and formats agree?

Backward passes are not for such tensors: autograd asks CUDA itself for the device.
"""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from models import encoder_layer, fused
from models.ingredient import get_model
from models.matcher import _position_code
from tests.narrow import narrow
from tests.reference import META
from utils.retrieval.chamfer import Chamfer
from utils.runtime.precision import autocast, set_precision
from utils.training.losses import BinaryCrossEntropyWithLogits, Contrastive

GPU = torch.device("cuda", 0)
PRECISIONS = ["tf32", "bf16", "fp16"]
pytestmark = pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor:UserWarning")  # torch's own


@pytest.fixture
def fake(monkeypatch):
    def apply(module, function, recurse=True):
        """`nn.Module._apply`, which swaps tensors, where fake ones refuse to be swapped."""
        for child in module.children():
            apply(child, function)
        for name, tensor in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(function(tensor.detach()), tensor.requires_grad))
        for name, tensor in module.named_buffers(recurse=False):
            setattr(module, name, function(tensor))
        return module

    monkeypatch.setattr(nn.Module, "_apply", apply)
    monkeypatch.setattr(FakeTensorMode, "__deepcopy__", lambda mode, memo: mode, raising=False)
    for module in (torch.cuda.amp.common, torch.amp.grad_scaler):  # which ask for a real device
        monkeypatch.setattr(module, "amp_definitely_not_available", lambda: False, raising=False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
    monkeypatch.setattr(fused, "_is_inference", lambda device: False)  # a trial compares numbers
    monkeypatch.setattr(encoder_layer, "TRITON", False)
    _position_code.cache_clear()
    with narrow(), FakeTensorMode():
        yield
    _position_code.cache_clear()  # of fake tensors


def network() -> nn.Module:
    return get_model(6, **META["default"] | {"arch": "resnet18"}).to(GPU, memory_format=torch.channels_last)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_embedding_and_scoring(fake, precision):
    dtype = set_precision(precision, GPU)
    model = network().eval()
    descriptors, maps = model.embedder(dtype)(torch.zeros(4, 3, 96, 96, dtype=torch.uint8, device=GPU))
    assert (descriptors.shape, descriptors.dtype, descriptors.device) == ((4, 128), torch.float32, GPU)
    assert (maps.shape, maps.dtype, maps.device) == ((4, 128, 3, 3), dtype, GPU)
    with torch.inference_mode():
        for scorer in (Chamfer(), model.matcher.computing_in(dtype)):
            queries = scorer.encode_queries(maps[:2])[torch.tensor([0, 0, 1, 1], device=GPU)]
            scores = scorer.score(queries, scorer.encode_candidates(maps))
            assert (scores.shape, scores.dtype, scores.device) == ((4,), torch.float32, GPU)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_a_step_computes_before_its_gradients(fake, precision):
    dtype = set_precision(precision, GPU)
    model = network().train()
    images, labels = torch.zeros(6, 3, 96, 96, dtype=torch.uint8, device=GPU), torch.arange(6, device=GPU) // 2
    with autocast(GPU, dtype):
        logits, descriptors, local = model(images)
        pair_logits = model.matcher(None, local[:3], None, local[3:])
    assert (local.dtype, pair_logits.dtype) == (dtype, torch.float32)
    losses = (
        Contrastive()(logits.float(), descriptors.float(), labels),
        BinaryCrossEntropyWithLogits()(pair_logits, None, torch.ones_like(pair_logits)).mean(),
    )
    scaler = torch.amp.GradScaler("cuda", enabled=dtype == torch.float16)
    for loss in map(scaler.scale, losses):
        assert (loss.shape, loss.dtype, loss.device) == ((), torch.float32, GPU)


def test_tensors_of_two_devices_are_noticed(fake):
    with pytest.raises(RuntimeError, match="same device"):
        Contrastive()(None, torch.zeros(4, 8, device=GPU), torch.arange(4))
