"""Operations in one pass with what follows them, each tried once against plain layers before it is used.

oneDNN's stand behind names that torch keeps private: a torch that has changed them is served by plain layers.
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


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str = "none", added: Tensor | None = None
) -> Tensor:
    """`activation(x @ weight.T + bias) + added`; the activation is 'none', 'relu' or 'gelu'.

    In one pass by oneDNN where it can be: on a CPU, without gradients, and not with both an activation and `added`.
    """
    if added is not None and (activation != "none" or added.dtype != x.dtype):
        return linear(x, weight, bias, activation) + added
    compute = _by_onednn if suits_onednn(x, _onednn_multiplies_in) else _by_torch
    return compute(x, weight, bias, activation, added)


def suits_onednn(x: Tensor, usable_in: Callable[[torch.dtype], bool]) -> bool:
    """Whether `x` lies on a CPU, without gradients and autocast, in a format that oneDNN's operator is usable in."""
    plain = not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
    return x.device.type == "cpu" and plain and _onednn_knows(x.dtype) and usable_in(x.dtype)


def answers_alike(otherwise: str, fused: Callable[[], Tensor], plain: Callable[[], Tensor], dtype: torch.dtype) -> bool:
    """Whether `fused()`, computed in `dtype`, gives what `plain()` does; if not, or if it fails, a line says why.

    `otherwise` begins that line: what is then done without the fused operation.
    """
    expected = plain()
    try:
        difference = (fused() - expected).abs().max() / expected.abs().max()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # an operator that is gone, no C compiler: whatever it is, plain layers serve
        reason = str(error).partition("\n")[0]
        tqdm.write(f"{otherwise}: {type(error).__name__}: {reason}")
        return False
    if difference < TOLERANCES[dtype]:
        return True
    tqdm.write(f"{otherwise}, which is {difference:.2g} of the largest off")
    return False


def _by_torch(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, added: Tensor | None) -> Tensor:
    y = ACTIVATIONS[activation](F.linear(x, weight, bias))
    return y if added is None else y + added


def _by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, added: Tensor | None) -> Tensor:
    if added is not None:
        return torch.ops.mkldnn._linear_pointwise.binary(x, added, weight, bias, "add")
    kind = "none" if activation == "gelu" else ""  # of gelu's formula
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], kind)


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

    def each_way(compute: Callable[..., Tensor]) -> Tensor:
        cases = [(activation, None) for activation in ACTIVATIONS] + [("none", x)]
        return torch.stack([compute(x, weight, weight[0], *case) for case in cases])

    otherwise = "linear layers are computed without oneDNN's fused operator"
    return answers_alike(otherwise, lambda: each_way(_by_onednn), lambda: each_way(_by_torch), dtype)
