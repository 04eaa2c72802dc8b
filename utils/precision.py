"""The number formats that a run computes in."""

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
