"""The reranking transformer: local maps of two images in, one logit out (paper, section 3.2)."""

import copy
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.encoder_layer import attention_weights, encoder_layer
from models.position_encoding import sine_position_encoding
from utils.runtime.precision import true_float32

CLS, SEP, QUERY, CANDIDATE = range(4)  # rows of the segment table


class Matcher(nn.Module):
    """Scores pairs of local maps: the sequence `[CLS] query tokens [SEP] candidate tokens` goes through a transformer
    encoder, and its CLS output through a linear layer to one logit; larger means more alike.

    `encode_queries` and `encode_candidates` turn images into tokens, `score` compares them pair by pair.
    """

    def __init__(
        self,
        d_model: int = 128,
        nhead: int = 4,
        num_encoder_layers: int = 6,
        dim_feedforward: int = 1024,
        dropout: float = 0.0,
        activation: str = "relu",
        normalize_before: bool = False,
    ):
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            d_model, nhead, dim_feedforward, dropout, activation, batch_first=True, norm_first=normalize_before
        )
        self.encoder = nn.TransformerEncoder(
            layer, num_encoder_layers, nn.LayerNorm(d_model) if normalize_before else None, enable_nested_tensor=False
        )
        self.seg_encoder = nn.Embedding(4, d_model)
        self.classifier = nn.Linear(d_model, 1)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, src_global: Tensor | None, src_local: Tensor, tgt_global: Tensor | None, tgt_local: Tensor):
        """Logits, shape (B,), of B pairs of local maps (B, d, h, w): queries `src_local`, candidates `tgt_local`.

        The two sides' maps may differ in height and width. The global descriptors are accepted and not used.
        """
        return self.score(self.encode_queries(src_local), self.encode_candidates(tgt_local))

    def encode_queries(self, local: Tensor) -> Tensor:
        """Tokens (B, h*w, d), row by row, of query images' local maps (B, d, h, w)."""
        return self._encode(local, QUERY)

    def encode_candidates(self, local: Tensor) -> Tensor:
        """The same of candidates' maps."""
        return self._encode(local, CANDIDATE)

    def _encode(self, local: Tensor, segment: int) -> Tensor:
        """Local features with the position code and `segment`'s vector added."""
        position = _position_code(*local.shape[1:], local.device)
        return (local + position).flatten(2).transpose(1, 2) + self.seg_encoder.weight[segment]

    def computing_in(self, dtype: torch.dtype) -> "Matcher":
        """A copy with the encoder's matrix products in `dtype`; tokens, and what is added to them, stay in float32."""
        matcher = copy.deepcopy(self)
        for module in matcher.encoder.modules():
            if isinstance(module, nn.Linear | nn.MultiheadAttention):
                module.to(dtype)
        return matcher

    def score(self, query_tokens: Tensor, candidate_tokens: Tensor) -> Tensor:
        """Logits (B,) of pairs of encoded images, query (B, n, d) and candidate (B, m, d)."""
        tokens = self._sequence(query_tokens, candidate_tokens)
        *layers, last = self.encoder.layers
        for layer in layers:
            tokens = encoder_layer(layer, tokens)
        readout = encoder_layer(last, tokens, num_outputs=1)[:, 0]
        if self.encoder.norm is not None:
            readout = self.encoder.norm(readout)
        # a logit's last digits order the candidates
        with torch.autocast(readout.device.type, enabled=False), true_float32():
            return F.linear(readout.float(), self.classifier.weight.float(), self.classifier.bias.float())[:, 0]

    def attention(self, query_tokens: Tensor, candidate_tokens: Tensor) -> Tensor:
        """Attention weights (B, layers, heads, L, L) of pairs as for `score`, L = n + m + 2, each row adding up to 1.

        Row i tells how much token i takes of each token, in the order [CLS], query, [SEP], candidate: row 0 is the
        readout's. Of the last layer `score` uses this row alone. Computed plainly, for eval mode.
        """
        tokens, weights = self._sequence(query_tokens, candidate_tokens), []
        for layer in self.encoder.layers:
            weights.append(attention_weights(layer, tokens))
            tokens = encoder_layer(layer, tokens)
        return torch.stack(weights, dim=1)

    def _sequence(self, query_tokens: Tensor, candidate_tokens: Tensor) -> Tensor:
        """The encoder's input (B, 1 + n + 1 + m, d)."""
        cls, sep = (self.seg_encoder.weight[row].expand(len(query_tokens), 1, -1) for row in (CLS, SEP))
        return torch.cat((cls, query_tokens, sep, candidate_tokens), dim=1)


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # so that training can use it, too
def _position_code(channels: int, height: int, width: int, device: torch.device) -> Tensor:
    """The position code (channels, height, width) on a device, kept there for the next maps of this size."""
    return sine_position_encoding(channels, height, width).to(device)
