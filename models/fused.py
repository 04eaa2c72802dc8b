"""Linear layers fused with activation or addition; each operator is compared with plain layers before its first use.

On a CPU they are oneDNN's, on a GPU cuBLAS's, behind names that torch keeps private: a torch that has changed them is
served by plain layers.
"""

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

ACTIVATIONS = {"none": lambda x: x, "relu": F.relu, "gelu": F.gelu}
# of the largest value: what another order of rounding may change; a wrong formula is further off
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 0.03, torch.float16: 0.03}
TF32_TOLERANCE = 0.01  # of products whose factors one side may round to ten bits
TRIAL = 8  # images or pairs on which operations of a GPU are compared
_usable: dict[tuple, bool] = {}  # by what an operation of a GPU was tried on
_told: set[str] = set()


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str = "none", added: Tensor | None = None
) -> Tensor:
    """`activation(x @ weight.T + bias) + added`; the activation is 'none', 'relu' or 'gelu'.

    In one pass where it can be, without gradients: by oneDNN on a CPU, but not with both an activation and `added`; by
    cuBLAS on a GPU, where the activation is ReLU.
    """
    if added is not None and (activation != "none" or added.dtype != x.dtype):
        return linear(x, weight, bias, activation) + added
    if suits_onednn(x, _onednn_multiplies_in):
        return _linear_by_onednn(x, weight, bias, activation, added)
    if activation == "relu" and bias is not None and suits_gpu(x) and _cublas_multiplies(x, weight, bias):
        return _linear_by_cublas(x, weight, bias)
    return _linear_by_torch(x, weight, bias, activation, added)


def suits_onednn(x: Tensor, usable_in: Callable[[torch.dtype], bool]) -> bool:
    """Whether `x` lies on a CPU, without gradients and autocast, in a format that oneDNN's operator is usable in."""
    return x.device.type == "cpu" and _is_inference("cpu") and _onednn_knows(x.dtype) and usable_in(x.dtype)


def suits_gpu(x: Tensor) -> bool:
    """Whether `x` lies on a GPU, without gradients and autocast."""
    return x.device.type == "cuda" and _is_inference("cuda")


def _is_inference(device: str) -> bool:
    return not torch.is_grad_enabled() and not torch.is_autocast_enabled(device)


def is_usable(
    made_for: tuple, fallback: str, fused: Callable[[], Tensor], plain: Callable[[], Tensor], dtype: torch.dtype
) -> bool:
    """`matches_reference`, tried once for each `made_for`, which names a device, a format and shapes."""
    if made_for not in _usable:
        _usable[made_for] = matches_reference(fallback, fused, plain, dtype)
    return _usable[made_for]


def matches_reference(
    fallback: str, fused: Callable[[], Tensor], plain: Callable[[], Tensor], dtype: torch.dtype
) -> bool:
    """Whether `fused()`, computed in `dtype`, gives what `plain()` does; if not, or if it fails, a line says why, once.

    `fallback` begins that line: what is then done without the fused operation.
    """
    expected = plain()
    try:
        difference = (fused() - expected).abs().max() / expected.abs().max()
    except torch.OutOfMemoryError:  # not of the operation: fewer at a time are tried then
        raise
    except Exception as error:  # an operator that is gone, no C compiler: whatever it is, plain layers serve
        reason = f": {type(error).__name__}: " + str(error).partition("\n")[0]
    else:
        rounds = expected.is_cuda and dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"
        if difference < (TF32_TOLERANCE if rounds else TOLERANCES[dtype]):
            return True
        reason = f", which is {difference:.2g} of the largest off"
    if fallback not in _told:
        _told.add(fallback)
        tqdm.write(fallback + reason)
    return False


def _linear_by_torch(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, added: Tensor | None) -> Tensor:
    y = ACTIVATIONS[activation](F.linear(x, weight, bias))
    return y if added is None else y + added


def _linear_by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, added: Tensor | None) -> Tensor:
    if added is not None:
        return torch.ops.mkldnn._linear_pointwise.binary(x, added, weight, bias, "add")
    kind = "none" if activation == "gelu" else ""  # of gelu's formula
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], kind)


def _linear_by_cublas(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`relu(x @ weight.T + bias)`."""
    return torch._addmm_activation(bias, x.flatten(0, -2), weight.t()).view(*x.shape[:-1], -1)  # type: ignore[attr-defined]


def _cublas_multiplies(x: Tensor, weight: Tensor, bias: Tensor) -> bool:
    """Whether cuBLAS's product with a ReLU answers as plain layers."""
    trial = x[:TRIAL], weight, bias
    return is_usable(
        (_linear_by_cublas, x.device, x.dtype, weight.shape),
        "linear layers are computed without cuBLAS's ReLU",
        lambda: _linear_by_cublas(*trial),
        lambda: _linear_by_torch(*trial, "relu", None),
        x.dtype,
    )


@cache
def _onednn_knows(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    bf16_is_supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    return dtype == torch.float32 or (dtype == torch.bfloat16 and bf16_is_supported())


@cache
def _onednn_multiplies_in(dtype: torch.dtype) -> bool:
    """Whether oneDNN's fused linear layers answer as plain ones; tried once, and a line says where they do not."""
    x, weight = (torch.linspace(-1, 1, 16, dtype=dtype).view(4, 4) for _ in range(2))

    def all_cases(compute: Callable[..., Tensor]) -> Tensor:
        cases = [(activation, None) for activation in ACTIVATIONS] + [("none", x)]
        return torch.stack([compute(x, weight, weight[0], *case) for case in cases])

    fallback = "linear layers are computed without oneDNN's fused operator"
    return matches_reference(fallback, lambda: all_cases(_linear_by_onednn), lambda: all_cases(_linear_by_torch), dtype)
