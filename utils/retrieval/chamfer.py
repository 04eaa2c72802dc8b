"""Chamfer similarity of the feature maps of two images; it has no weights."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Chamfer:
    """Scores pairs as the matcher does, by `encode_queries`, `encode_candidates` and `score`.

    The best cosine of each query token with the candidate's tokens is averaged over the query's tokens, and likewise
    from candidate to query; the similarity is the mean of both, 1 for equal maps. ELViS uses it as a baseline.
    """

    def encode_queries(self, local: Tensor) -> Tensor:
        """Normalised tokens (B, n, d) of feature maps (B, d, h, w), in their dtype."""
        return self.encode_candidates(local).transpose(1, 2)

    def encode_candidates(self, local: Tensor) -> Tensor:
        """Normalised tokens (B, d, m) of feature maps (B, d, h, w), in their dtype."""
        return F.normalize(local.flatten(2), dim=1, eps=1e-6)  # float16's smallest numbers are about that

    def score(self, query_tokens: Tensor, candidate_tokens: Tensor) -> Tensor:
        """Similarities (B,), float32, of pairs of encoded images."""
        cosines = torch.bmm(query_tokens, candidate_tokens)
        return (cosines.amax(dim=2).float().mean(dim=1) + cosines.amax(dim=1).float().mean(dim=1)) / 2


class TokenPair(NamedTuple):
    """Two tokens of which at least one has the other as its best partner."""

    query: int
    candidate: int
    cosine: float
    share: float  # what the pair adds to the Chamfer similarity, which is the sum of all pairs' shares


@torch.inference_mode()
def token_pairs(query: Tensor, candidate: Tensor) -> list[TokenPair]:
    """The pairs of tokens that make the Chamfer similarity of two maps (1, d, h, w), of the largest share first."""
    chamfer = Chamfer()
    cosines = (chamfer.encode_queries(query) @ chamfer.encode_candidates(candidate))[0]
    n, m = cosines.shape
    weights = torch.zeros_like(cosines)
    weights[torch.arange(n), cosines.argmax(dim=1)] += 1 / (2 * n)
    weights[cosines.argmax(dim=0), torch.arange(m)] += 1 / (2 * m)
    shares = weights * cosines
    pairs = [TokenPair(i, j, cosines[i, j].item(), shares[i, j].item()) for i, j in weights.nonzero().tolist()]
    return sorted(pairs, key=lambda pair: -pair.share)
