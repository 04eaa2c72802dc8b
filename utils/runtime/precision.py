"""The number formats that a run computes in."""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch.backends import cudnn, mkldnn
from torch.backends.cuda import matmul

from utils.errors import InputError, choose

OF_CUDA = matmul, cudnn.conv  # type: ignore[attr-defined]
OF_MKLDNN = mkldnn.matmul, mkldnn.conv  # type: ignore[attr-defined]
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def set_precision(precision: str | None, device: torch.device) -> torch.dtype:
    """Turn TF32 on or off and return the number format of matrix products and convolutions.

    `precision` is 'fp32', 'tf32', 'bf16', 'fp16', or None: fp32 on a CPU and tf32 on CUDA. InputError for any other,
    and for bf16 on a GPU that only emulates it. On CUDA, cuDNN's attention is turned off: in half precision its
    gradients can be NaN on Hopper (cudnn-frontend issue 1072).
    """
    name = precision or ("tf32" if device.type == "cuda" else "fp32")
    dtype = choose(DTYPES, name, "precision")
    if device.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)
        if name == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
            raise InputError(f"precision=bf16: {torch.cuda.get_device_name(device)} only emulates it, set fp16 or fp32")
    for setting in OF_CUDA:
        setting.fp32_precision = "tf32" if name == "tf32" else "ieee"
    return dtype


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Matrix products and convolutions in `dtype`, everything else as it is."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def true_float32() -> AbstractContextManager[None]:
    """In the block matrix products of float32 tensors keep all their digits where TF32 would round them to ten bits."""
    return _ieee(matmul)


_computing = threading.RLock()  # most of what `float32_throughout` sets is the process's


@contextmanager
def float32_throughout() -> Iterator[None]:
    """In the block new tensors are float32 and on the CPU, and float32 keeps all its digits, whatever the program has
    set: a default dtype or device, autocast, TF32 or bfloat16 within products. Afterwards all is as it was.

    One thread at a time is in such a block.
    """
    with _computing:
        dtype = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)
        try:
            with (
                torch.device("cpu"),
                torch.autocast("cpu", enabled=False),
                torch.autocast("cuda", enabled=False),
                _ieee(torch.backends, cudnn, *OF_CUDA, mkldnn, *OF_MKLDNN),
            ):
                yield
        finally:
            torch.set_default_dtype(dtype)


@contextmanager
def _ieee(*settings: Any) -> Iterator[None]:
    """In the block the `fp32_precision` of all `settings` is 'ieee'.

    One that was not set itself answers with that of the setting above it: come first those above. So it follows them,
    and goes on to do so afterwards.
    """
    kept = []
    try:
        for setting in settings:
            if setting.fp32_precision != "ieee":
                kept.append((setting, setting.fp32_precision))
                setting.fp32_precision = "ieee"
        yield
    finally:
        for setting, precision in reversed(kept):
            setting.fp32_precision = precision
