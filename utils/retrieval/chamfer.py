"""Chamfer similarity of two images' local maps: what they have alike, without training."""

import torch
import torch.nn.functional as F
from torch import Tensor


class Chamfer:
    """Scores pairs as the matcher does, by `encode_queries`, `encode_candidates` and `score`.

    Half the sum of each query token's best cosine among the candidate's tokens, averaged, and the same the other way
    round: 1 for the same map twice. ELViS has it as its baseline.
    """

    def encode_queries(self, local: Tensor) -> Tensor:
        """Normalised tokens (B, n, d) of maps (B, d, h, w), in their number format."""
        return self.encode_candidates(local).transpose(1, 2)

    def encode_candidates(self, local: Tensor) -> Tensor:
        """The same, (B, d, m)."""
        return F.normalize(local.flatten(2), dim=1, eps=1e-6)  # float16's smallest numbers are about that

    def score(self, query_tokens: Tensor, candidate_tokens: Tensor) -> Tensor:
        """Similarities (B,), float32, of pairs of encoded images."""
        cosines = torch.bmm(query_tokens, candidate_tokens)
        return (cosines.amax(dim=2).float().mean(dim=1) + cosines.amax(dim=1).float().mean(dim=1)) / 2
