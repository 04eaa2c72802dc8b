import math

import pytest
import torch
import torch.nn.functional as F

from tests.reference import ANSWERS, assert_answer, normal
from utils import BinaryCrossEntropyWithLogits, Contrastive


def plain_contrastive(features, labels, temperature):
    total, n = 0.0, len(labels)
    for i in range(n):
        row = [math.exp(0 if i == j else float(features[i] @ features[j]) / temperature) for j in range(n)]
        positives = [row[j] for j in range(n) if j != i and labels[j] == labels[i]]
        if positives:
            total -= math.log(sum(positives) / sum(row))
    return total / n


def test_contrastive_published_with_gradient(device):
    features = F.normalize(normal("contrastive.features", 24, 128).to(device), dim=-1).requires_grad_()
    labels = torch.from_numpy(ANSWERS["contrastive.labels"]).to(device)
    loss = Contrastive(temperature=0.05)(None, features, labels)
    loss.backward()
    assert_answer(loss.detach().cpu(), "contrastive.loss")
    assert_answer(features.grad.cpu(), "contrastive.grad")


@pytest.mark.parametrize("labels", [[0, 0, 1, 1, 2], [0, 1, 2, 3, 4], [7, 7, 7, 7, 7]])
def test_contrastive_formula(labels, device):
    features = F.normalize(torch.randn(5, 8, dtype=torch.double), dim=1).to(device).requires_grad_()
    loss = Contrastive(temperature=0.1)(None, features, torch.tensor(labels, device=device))
    assert loss.item() == pytest.approx(plain_contrastive(features.detach(), labels, 0.1), abs=1e-12)
    (gradient,) = torch.autograd.grad(loss, features)
    assert gradient.isfinite().all()
    if len(set(labels)) == 5:
        assert loss.item() == 0
        assert not gradient.any()


def test_contrastive_stays_finite_at_a_low_temperature():
    features = F.normalize(torch.randn(6, 8), dim=1)
    assert Contrastive(temperature=0.001)(None, features, torch.arange(6) // 2).isfinite()


def test_binary_cross_entropy_per_pair(device):
    logits, targets = torch.tensor([[0.3, -2.0, 40.0], [1.0, 0.0, 0.0]], device=device)
    losses = BinaryCrossEntropyWithLogits()(logits, None, targets)
    expected = [-math.log(1 / (1 + math.exp(-0.3))), -math.log(1 - 1 / (1 + math.exp(2.0))), 40.0]
    assert losses.tolist() == pytest.approx(expected, abs=1e-6)
