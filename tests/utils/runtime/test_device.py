"""Whether there is a GPU for a run."""

import pytest
import torch

from utils.errors import InputError
from utils.runtime.device import has_gpu

TOO_OLD = "The NVIDIA driver on your system is too old (found version 12020). Please update your GPU driver"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU"),
        RuntimeError("No CUDA GPUs are available"),
        AssertionError("Torch not compiled with CUDA enabled"),
    ],
)
def test_has_gpu_without_one(error, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", lambda: (_ for _ in ()).throw(error))
    assert not has_gpu()


def test_an_unusable_gpu_raises(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", lambda: (_ for _ in ()).throw(RuntimeError(TOO_OLD)))
    with pytest.raises(InputError, match=r"^the GPU cannot be used \(The NVIDIA driver .* is too old .*set cpu=True$"):
        has_gpu()
