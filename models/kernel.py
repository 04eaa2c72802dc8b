"""What follows attention in an encoder layer as one GPU kernel: the inner activations stay on the chip.

They are eight times as wide as a token, and pass through memory four times where products and ReLU are by themselves.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from models.fused import TRIAL, is_usable

# Tokens of a program, inner activations that it holds of each at a time, and how it is launched. Chosen by what is
# built of them for layers of 128 and 1024: no spilled registers, 96 KiB of shared memory on an A100, 160 on an H100
# and its products of warpgroups. Not tuned on a GPU.
ROWS, COLUMNS = 128, 64
LAUNCH = {"num_warps": 8, "num_stages": 3}
WIDTHS = (16, 32, 64, 128)  # of the layers that it can compute: a token's features stay in registers
MIN_CAPABILITY = (8, 0)  # older cards lack the shared memory, which a minute of compiling would find out


def computes(layer, tokens: Tensor, attended: Tensor, plain: Callable[..., Tensor]) -> bool:
    """Whether the kernel computes such a layer. A trial decides; where it fails, a line says why.

    `plain` takes what `after_attention` takes, and returns what it should.
    """
    weight = layer.linear1.weight
    fits = weight.shape[1] in WIDTHS and weight.shape[0] % COLUMNS == 0 and layer.activation is F.relu
    trial = layer, tokens[:TRIAL], attended[:TRIAL]
    return (
        fits
        and torch.cuda.get_device_capability(weight.device) >= MIN_CAPABILITY
        and is_usable(
            (after_attention, weight.device, weight.dtype, weight.shape, layer.norm_first),
            "encoder layers are computed without the fused kernel",
            lambda: after_attention(*trial),
            lambda: plain(*trial),
            weight.dtype,
        )
    )


def after_attention(layer, tokens: Tensor, attended: Tensor) -> Tensor:
    """An `nn.TransformerEncoderLayer`'s output (B, L, d), float32, of its input `tokens` and its attention's heads.

    Products are in the number format of `attended` and of the linear layers, sums and norms in float32. The activation
    is ReLU, the feed-forward part's width a multiple of `COLUMNS`, d one of `WIDTHS`; no dropout.
    """
    attended, tokens = attended.contiguous(), tokens.contiguous()
    out = torch.empty_like(tokens, dtype=torch.float32)
    rows, d = out.numel() // out.shape[-1], out.shape[-1]
    parts = (layer.self_attn.out_proj, layer.norm1, layer.linear1, layer.linear2, layer.norm2)
    tensors = [tensor for part in parts for tensor in (part.weight, part.bias)]
    with torch.cuda.device_of(tokens):
        _after_attention[(triton.cdiv(rows, ROWS),)](
            attended,
            tokens,
            out,
            rows,
            *tensors,
            layer.norm1.eps,
            D=d,
            HIDDEN=layer.linear1.out_features,
            ROWS=ROWS,
            COLUMNS=COLUMNS,
            NORM_FIRST=layer.norm_first,
            **LAUNCH,
        )
    return out


@triton.jit(do_not_specialize=["rows"])
def _after_attention(
    attended,  # half precision (rows, D), as are the weights of the linear layers, which lie as torch has them
    tokens,  # (rows, D)
    out,  # float32 (rows, D)
    rows,
    out_weight,
    out_bias,
    norm1_weight,
    norm1_bias,
    weight1,
    bias1,
    weight2,
    bias2,
    norm2_weight,
    norm2_bias,
    eps,
    D: tl.constexpr,
    HIDDEN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    NORM_FIRST: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, D)
    offsets = row.to(tl.int64) * D + column
    x = tl.load(attended + offsets, row < rows, other=0.0)
    y = tl.dot(x, tl.load(out_weight + column[None, :] * D + column[:, None]))
    y += tl.load(out_bias + column).to(tl.float32) + tl.load(tokens + offsets, row < rows, other=0.0)
    if NORM_FIRST:
        inner = _normed(y, tl.load(norm2_weight + column), tl.load(norm2_bias + column), eps, D).to(x.dtype)
    else:
        y = _normed(y, tl.load(norm1_weight + column), tl.load(norm1_bias + column), eps, D)
        inner = y.to(x.dtype)
    y += tl.load(bias2 + column).to(tl.float32)
    for start in range(0, HIDDEN, COLUMNS):
        inner_column = start + tl.arange(0, COLUMNS)
        hidden = tl.dot(inner, tl.load(weight1 + inner_column[None, :] * D + column[:, None]))
        hidden = tl.maximum(hidden + tl.load(bias1 + inner_column).to(tl.float32), 0.0).to(x.dtype)
        y = tl.dot(hidden, tl.load(weight2 + column[None, :] * HIDDEN + inner_column[:, None]), y)
    if not NORM_FIRST:
        y = _normed(y, tl.load(norm2_weight + column), tl.load(norm2_bias + column), eps, D)
    tl.store(out + offsets, y, row < rows)


@triton.jit
def _normed(x, weight, bias, eps, D: tl.constexpr):
    """Layer norm of rows (ROWS, D)."""
    centred = x - tl.sum(x, axis=1, keep_dims=True) / D
    variance = tl.sum(centred * centred, axis=1, keep_dims=True) / D
    return centred * tl.rsqrt(variance + eps) * weight + bias
