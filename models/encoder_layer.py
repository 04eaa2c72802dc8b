"""An `nn.TransformerEncoderLayer`, computed in fewer passes, for all tokens or the first few."""

from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.fused import linear

TRITON = find_spec("triton") is not None


def encoder_layer(layer, tokens: Tensor, num_outputs: int | None = None) -> Tensor:
    """The layer's output (B, L, d) of (B, L, d), computing the first `num_outputs` tokens only (default: all)."""
    attended = _attended(layer.self_attn, layer.norm1(tokens) if layer.norm_first else tokens, num_outputs)
    tokens = tokens[:, :num_outputs]
    if _suits_kernel(layer, attended):
        from models import kernel  # imports Triton

        if kernel.computes(layer, tokens, attended, _after_attention):
            return kernel.after_attention(layer, tokens, attended)
    return _after_attention(layer, tokens, attended)


def attention_weights(layer, tokens: Tensor) -> Tensor:
    """The weights (B, heads, L, L) by which the layer's attention adds up its values, of its input (B, L, d)."""
    attention = layer.self_attn
    d, heads = attention.embed_dim, attention.num_heads
    tokens = layer.norm1(tokens) if layer.norm_first else tokens
    packed = F.linear(tokens, attention.in_proj_weight[: 2 * d], attention.in_proj_bias[: 2 * d])
    query, key = packed.unflatten(-1, (2, heads, -1)).permute(2, 0, 3, 1, 4)
    return (query @ key.mT / (d // heads) ** 0.5).softmax(dim=-1)


def _attended(attention: nn.MultiheadAttention, tokens: Tensor, num_outputs: int | None) -> Tensor:
    """Self-attention's heads (B, L, d) for the first `num_outputs` tokens, without the attention maps."""
    d, heads = attention.embed_dim, attention.num_heads
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    tokens = tokens.to(weight.dtype)
    if num_outputs is None:
        packed = linear(tokens, weight, bias)
        query, key, value = packed.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    else:
        query = linear(tokens[:, :num_outputs], weight[:d], bias[:d]).unflatten(-1, (heads, -1)).transpose(1, 2)
        packed = linear(tokens, weight[d:], bias[d:])
        key, value = packed.unflatten(-1, (2, heads, -1)).permute(2, 0, 3, 1, 4)
    dropout = attention.dropout if attention.training else 0.0
    attended = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
    return attended.transpose(1, 2).flatten(2)


def _after_attention(layer, tokens: Tensor, attended: Tensor) -> Tensor:
    """The layer's output, of its input and its attention's heads."""
    kept = _residual(tokens, attended, layer.self_attn.out_proj, layer.dropout1)
    if layer.norm_first:
        return _residual(kept, _hidden(layer, layer.norm2(kept)), layer.linear2, layer.dropout2)
    kept = layer.norm1(kept)
    return layer.norm2(_residual(kept, _hidden(layer, kept), layer.linear2, layer.dropout2))


def _residual(tokens: Tensor, x: Tensor, projection: nn.Linear, dropout: nn.Dropout) -> Tensor:
    """`tokens + dropout(projection(x))`."""
    if dropout.training and dropout.p:
        return tokens + dropout(linear(x, projection.weight, projection.bias))
    return linear(x, projection.weight, projection.bias, added=tokens)


def _hidden(layer, tokens: Tensor) -> Tensor:
    """The inner activations of a layer's feed-forward part."""
    first = layer.linear1
    return layer.dropout(linear(tokens.to(first.weight.dtype), first.weight, first.bias, layer.activation.__name__))


def _suits_kernel(layer, attended: Tensor) -> bool:
    """Whether this is to be computed on a GPU in half precision, without gradients or dropout."""
    half = attended.dtype == layer.linear1.weight.dtype and attended.dtype in (torch.bfloat16, torch.float16)
    plain = not (layer.training or torch.is_grad_enabled())
    return attended.device.type == "cuda" and half and plain and TRITON
