"""The criteria of the two trainings: modules, which may have weights of their own.

That of global descriptors is called as `criterion(logits, global_features, labels)`, of the whole batch; that of
reranking as `criterion(positive_logits, negative_logits)`, of some triplets (M,), and is a mean over them. Each gives
a scalar.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Contrastive(nn.Module):
    """Contrastive loss of the global descriptors (paper, section 3.1).

    For L2-normalised descriptors f (B, d) with labels (B,): s = f f^T with a zero diagonal, and for each anchor
    p = sum of exp(s / temperature) over the other images of its class / sum over the whole row. The loss is
    -sum(log p) over the anchors that have a positive, divided by B; a scalar, 0 when no anchor has one.
    """

    def __init__(self, temperature: float = 0.05):
        super().__init__()
        self.temperature = temperature

    def forward(self, logits: Tensor | None, global_features: Tensor, labels: Tensor) -> Tensor:
        same_image = torch.eye(len(labels), dtype=torch.bool, device=global_features.device)
        similarities = (global_features @ global_features.T).masked_fill(same_image, 0) / self.temperature
        positive = (labels[:, None] == labels) & ~same_image
        counted = positive | ~positive.any(dim=1, keepdim=True)  # without a positive the whole row: log p = 0
        positives = similarities.masked_fill(~counted, -torch.inf).logsumexp(dim=1)
        return (similarities.logsumexp(dim=1) - positives).sum() / len(labels)


class BinaryCrossEntropyWithLogits(nn.Module):
    """Binary cross-entropy of the matcher's logits with targets in {0, 1}, one value a pair (paper, section 3.3)."""

    def forward(self, logits: Tensor, global_features: Tensor | None, labels: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits, labels, reduction="none")


class MeanOverPairs(nn.Module):
    """A reranking criterion: the mean of a loss that judges each pair by itself, against target 1 or 0."""

    def __init__(self, loss: Callable[[Tensor, None, Tensor], Tensor]):
        super().__init__()
        self.loss = loss

    def forward(self, positive_logits: Tensor, negative_logits: Tensor) -> Tensor:
        targets = torch.cat((torch.ones_like(positive_logits), torch.zeros_like(negative_logits)))
        return self.loss(torch.cat((positive_logits, negative_logits)), None, targets).mean()
