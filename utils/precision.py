"""The number formats that a run computes in."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from utils.errors import choose

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def set_precision(precision: str | None, device: torch.device) -> torch.dtype:
    """Turn TF32 on or off and return the number format of matrix products and convolutions.

    `precision` is 'fp32', 'tf32', 'bf16', 'fp16', or None: fp32 on a CPU and tf32 on CUDA. InputError for any other.
    """
    name = precision or ("tf32" if device.type == "cuda" else "fp32")
    dtype = choose(DTYPES, name, "precision")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = name == "tf32"
    return dtype


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Matrix products and convolutions in `dtype`, everything else as it is."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


@contextmanager
def true_float32() -> Iterator[None]:
    """Matrix products of float32 tensors in the block keep all their digits where TF32 would round them to ten bits."""
    matmul = torch.backends.cuda.matmul
    allowed, matmul.allow_tf32 = matmul.allow_tf32, False
    try:
        yield
    finally:
        matmul.allow_tf32 = allowed
