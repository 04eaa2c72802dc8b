"""The criteria of the two trainings: modules, which may have weights of their own.

That of global descriptors is called as `criterion(logits, global_features, labels)`, of the whole batch; one of
reranking as `criterion(positive_scores, negative_scores)`, of some triplets (M,), and is a mean over them; negative
scores are (M, n) of n > 1 negatives an anchor. Each gives a scalar. One of reranking may say its `accuracy`, of the
same scores; the rate of its weights is `lr_factor` times the network's, if it has one.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LOGIT, CHAMFER = "logit", "chamfer"  # scores of pairs: the matcher's, and the similarity of the local maps


class Contrastive(nn.Module):
    """Contrastive loss of the global descriptors, a softmax over the batch without a margin (paper, section 3.1).

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


def accuracy_at_zero(positive_scores: Tensor, negative_scores: Tensor) -> Tensor:
    """The proportion of pairs on the right side of a score of 0, for a logit probability 0.5."""
    return torch.cat((positive_scores > 0, negative_scores <= 0)).float().mean()


class ScaledBinaryCrossEntropy(nn.Module):
    """A reranking criterion for similarities: binary cross-entropy of the logit `b * similarity + c`, with b and c
    trained."""

    lr_factor = 100  # a network's weights are about a hundredth of b and c

    def __init__(self, b: float = 10.0, c: float = -6.0):
        super().__init__()
        self.b, self.c = nn.Parameter(torch.tensor(b)), nn.Parameter(torch.tensor(c))
        self.of_logits = MeanOverPairs(BinaryCrossEntropyWithLogits())

    def forward(self, positive_scores: Tensor, negative_scores: Tensor) -> Tensor:
        return self.of_logits(self.b * positive_scores + self.c, self.b * negative_scores + self.c)

    def accuracy(self, positive_scores: Tensor, negative_scores: Tensor) -> Tensor:
        return accuracy_at_zero(self.b * positive_scores + self.c, self.b * negative_scores + self.c)


class ScaledSoftmax(nn.Module):
    """A reranking criterion for similarities with several negatives an anchor: cross-entropy of the softmax over
    `b * similarity` with the positive as target, b trained. Its accuracy is the proportion of positives that are first.
    """

    lr_factor = 100

    def __init__(self, b: float = 10.0):
        super().__init__()
        self.b = nn.Parameter(torch.tensor(b))

    def forward(self, positive_scores: Tensor, negative_scores: Tensor) -> Tensor:
        logits = self.b * torch.cat((positive_scores[:, None], negative_scores), dim=1)
        return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64, device=logits.device))

    def accuracy(self, positive_scores: Tensor, negative_scores: Tensor) -> Tensor:
        return (positive_scores > negative_scores.amax(dim=1)).float().mean()


OBJECTIVES = {"published": (LOGIT,), "joint": (LOGIT, CHAMFER), "chamfer": (CHAMFER,)}  # the scores that are trained


def rerank_criterion(objective: str, num_negatives: int = 1) -> nn.ModuleDict:
    """The criteria of the scores that an objective trains, by their names; 'chamfer' alone takes several negatives."""
    criteria = {
        LOGIT: MeanOverPairs(BinaryCrossEntropyWithLogits()),
        CHAMFER: ScaledBinaryCrossEntropy() if num_negatives == 1 else ScaledSoftmax(),
    }
    return nn.ModuleDict({name: criteria[name] for name in OBJECTIVES[objective]})
