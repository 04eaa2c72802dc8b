"""Precision: the dtype of matrix products and convolutions, TF32, autocast, and blocks of exact float32."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch.backends import cudnn, mkldnn
from torch.backends.cuda import matmul

from utils.errors import InputError, choose

CUDA_BACKENDS = matmul, cudnn.conv  # type: ignore[attr-defined]
MKLDNN_BACKENDS = mkldnn.matmul, mkldnn.conv  # type: ignore[attr-defined]
ALL_BACKENDS = torch.backends, cudnn, *CUDA_BACKENDS, mkldnn, *MKLDNN_BACKENDS  # parents first
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def computes_in_bf16(device: torch.device | None = None) -> bool:
    """Whether a device has instructions for bfloat16, so that it pays; None: CUDA where available, else the CPU."""
    if (device.type == "cuda") if device else torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("amx_bf16", "avx512_bf16"))


def set_precision(precision: str | None, device: torch.device) -> torch.dtype:
    """Turn TF32 on or off and return the dtype of matrix products and convolutions.

    `precision` is 'fp32', 'tf32', 'bf16', 'fp16', or None: fp32 on a CPU and tf32 on CUDA. InputError for any other,
    and for bf16 on a GPU that only emulates it. On CUDA, cuDNN's attention is turned off: in half precision its
    gradients can be NaN on Hopper (cudnn-frontend issue 1072).
    """
    name = precision or ("tf32" if device.type == "cuda" else "fp32")
    dtype = dtype_of(name, device)
    if device.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)
    for setting in CUDA_BACKENDS:
        setting.fp32_precision = "tf32" if name == "tf32" else "ieee"
    return dtype


def dtype_of(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of matrix products and convolutions; InputError where the device does not have it."""
    dtype = choose(DTYPES, precision, "precision")
    if device.type == "mps" and precision != "fp32":
        raise InputError(f"precision={precision}: it was never tried on device=mps, set fp32")
    if device.type == "cuda" and precision == "bf16" and not computes_in_bf16(device):
        raise InputError(f"precision=bf16: {torch.cuda.get_device_name(device)} only emulates it, set fp16 or fp32")
    return dtype


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Autocast matrix products and convolutions to `dtype`; nothing changes for float32."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def true_float32() -> AbstractContextManager[None]:
    """In the block float32 matrix products are exact: TF32, which rounds to 10 bits of mantissa, is off."""
    return _products({matmul: "ieee"})


_settings_lock = threading.RLock()  # most settings of `float32_throughout` are global to the process


@contextmanager
def float32_throughout(tf32: bool = False) -> Iterator[None]:
    """In the block new tensors are float32 on the CPU and float32 products are exact, whatever default dtype or device,
    autocast, TF32 or bfloat16 products the caller has set. The caller's settings are restored afterwards. With `tf32`,
    products on CUDA are rounded to TF32.

    The block holds a lock: one thread at a time runs in it.
    """
    with _settings_lock:
        dtype = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)
        try:
            with (
                torch.device("cpu"),
                torch.autocast("cpu", enabled=False),
                torch.autocast("cuda", enabled=False),
                torch.autocast("mps", enabled=False),
                _products(
                    dict.fromkeys(ALL_BACKENDS, "ieee") | dict.fromkeys(CUDA_BACKENDS, "tf32" if tf32 else "ieee")
                ),
            ):
                yield
        finally:
            torch.set_default_dtype(dtype)


@contextmanager
def _products(precisions: Mapping[Any, str]) -> Iterator[None]:
    """In the block the `fp32_precision` of settings is as given.

    A setting that was never set inherits from its parent. Parents come first, so that children that are to be as they
    are already follow, are not set, and inherit afterwards, too.
    """
    before = {setting: setting.fp32_precision for setting in precisions}
    changed = []
    try:
        for setting, precision in precisions.items():
            if setting.fp32_precision != precision:
                changed.append(setting)
                setting.fp32_precision = precision
        yield
    finally:
        for setting in reversed(changed):
            setting.fp32_precision = before[setting]
