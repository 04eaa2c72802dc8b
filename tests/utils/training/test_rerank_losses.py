"""The losses of reranking's scores against plain formulas, alone and through the step."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.processes import in_processes
from tests.reference import pixels
from tests.test_processes import small_model
from utils.distributed.collectives import all_reduce_gradients, shard_slice
from utils.distributed.group import process_group
from utils.errors import InputError
from utils.training.losses import OBJECTIVES, ScaledBinaryCrossEntropy, ScaledSoftmax, rerank_criterion
from utils.training.state import parameter_groups
from utils.training.steps import rerank_step

CASES = [("published", 1), ("joint", 1), ("chamfer", 1), ("chamfer", 3)]
IMAGES = 30  # ten triplets, or six anchors with three negatives


def test_values():
    positive, negative, negatives = torch.tensor([0.9, 0.5]), torch.tensor([0.7, 0.2]), torch.rand(2, 3)
    pairs, softmax = ScaledBinaryCrossEntropy(), ScaledSoftmax()
    right, wrong = 1 / (1 + torch.exp(6 - 10 * positive)), 1 / (1 + torch.exp(6 - 10 * negative))
    torch.testing.assert_close(pairs(positive, negative), -(right.log().sum() + (1 - wrong).log().sum()) / 4)
    assert pairs.accuracy(positive, negative).item() == 0.5  # 0.6 is the threshold: 0.9 and 0.2 are on their sides
    powers, of_negatives = torch.exp(10 * positive), torch.exp(10 * negatives).sum(dim=1)
    torch.testing.assert_close(softmax(positive, negatives), -(powers / (powers + of_negatives)).log().mean())
    assert softmax.accuracy(torch.tensor([0.6, 0.3, 0.5]), torch.tensor([[0.1, 0.5], [0.4, 0.2], [0.5, 0.5]])) == 1 / 3


def plain_chamfer(first, second):
    """Each token's largest cosine in the other map, averaged over both, pair by pair."""
    scores = []
    for one, other in zip(first, second, strict=True):
        cosines = torch.stack(
            [F.cosine_similarity(token[:, None], other.flatten(1), dim=0) for token in one.flatten(1).T]
        )
        scores.append((cosines.max(dim=1).values.mean() + cosines.max(dim=0).values.mean()) / 2)
    return torch.stack(scores)


def plain_loss(model, criterion, images, objective, num_negatives):
    """The loss, and the accuracy of the first score."""
    anchors, positives, *negatives = (model(images)[2][role :: 2 + num_negatives] for role in range(2 + num_negatives))
    losses, accuracies = [], []
    if objective != "chamfer":
        positive, negative = (model.matcher(None, anchors, None, others) for others in (positives, negatives[0]))
        losses.append((F.softplus(-positive) + F.softplus(negative)).mean() / 2)
        accuracies.append(((positive > 0).float() + (negative <= 0)).mean() / 2)
    if objective != "published":
        b, c = criterion["chamfer"].b, getattr(criterion["chamfer"], "c", 0)
        positive, *others = (b * plain_chamfer(anchors, maps) + c for maps in (positives, *negatives))
        if num_negatives == 1:
            losses.append((F.softplus(-positive) + F.softplus(others[0])).mean() / 2)
            accuracies.append(((positive > 0).float() + (others[0] <= 0)).mean() / 2)
        else:
            losses.append(-torch.stack((positive, *others), dim=1).log_softmax(dim=1)[:, 0].mean())
            accuracies.append((positive > torch.stack(others).amax(dim=0)).float().mean())
    return sum(losses), accuracies[0]


@pytest.mark.parametrize("pieces", [1, 2])
@pytest.mark.parametrize(("objective", "num_negatives"), CASES)
def test_step_against_plain_autograd(objective, num_negatives, pieces):
    model, criterion = small_model().train(), rerank_criterion(objective, num_negatives)
    images, weights = pixels("objectives", IMAGES, 3, 64, 64), nn.ModuleList([model, criterion])
    micro_batch = IMAGES // pieces if pieces > 1 else None
    step = rerank_step(model, criterion, micro_batch=micro_batch, num_negatives=num_negatives)
    loss, accuracy = step(images, None, lambda loss: 8 * loss)
    found = {name: p.grad / 8 for name, p in weights.named_parameters() if p.grad is not None}
    weights.zero_grad()
    expected, expected_accuracy = plain_loss(model, criterion, images, objective, num_negatives)
    expected.backward()
    torch.testing.assert_close((loss, accuracy), (expected.detach(), expected_accuracy), rtol=1e-5, atol=1e-6)
    gradients = {name: p.grad for name, p in weights.named_parameters() if p.grad is not None}
    assert found.keys() == gradients.keys()
    assert any(".matcher." in name or name.startswith("0.matcher") for name in found) == (objective != "chamfer")
    largest = max(gradient.abs().max() for gradient in gradients.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=float(1e-5 * largest))


@pytest.mark.parametrize(("objective", "num_negatives"), CASES[1:])
def test_gradients_of_two_processes_add_up_to_those_of_one(objective, num_negatives, tmp_path):
    group = 2 + num_negatives

    def work():
        model, criterion = small_model().train(), rerank_criterion(objective, num_negatives)
        weights, images = nn.ModuleList([model, criterion]), pixels("objectives", IMAGES, 3, 64, 64)
        with process_group(1, on_cpu=True):
            step = rerank_step(model, criterion, num_negatives=num_negatives)
            loss, accuracy = step(images[shard_slice(IMAGES, group)], None, lambda loss: loss)
            all_reduce_gradients(weights.parameters())
        gradients = {name: p.grad.numpy() for name, p in weights.named_parameters() if p.grad is not None}
        return loss.item(), accuracy.item(), gradients

    loss, accuracy, whole = work()
    for found_loss, found_accuracy, gradients in in_processes(2, work, tmp_path):
        assert (found_loss, found_accuracy) == pytest.approx((loss, accuracy), rel=1e-5)
        largest = max(abs(gradient).max() for gradient in whole.values())
        assert gradients.keys() == whole.keys()
        assert max(abs(gradients[name] - whole[name]).max() for name in whole) <= 1e-5 * largest


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_similarity_is_a_loss_in_float32(dtype, monkeypatch):
    """Half precision rounds the local maps, and nothing behind them."""
    model, criterion = small_model().train(), rerank_criterion("chamfer")
    images, maps = pixels("objectives", 6, 3, 64, 64), []

    def keep(module, inputs, output):
        output.retain_grad()
        maps.append(output)

    model.remap_local.register_forward_hook(keep)
    loss, _ = rerank_step(model, criterion, dtype)(images, None, lambda loss: 64 * loss)
    (local,) = maps
    plain = local.detach().float().requires_grad_()
    positive, negative = (10 * plain_chamfer(plain[0::3], plain[role::3]) - 6 for role in (1, 2))
    expected = (F.softplus(-positive) + F.softplus(negative)).mean() / 2
    (64 * expected).backward()
    torch.testing.assert_close(loss, expected.detach())
    assert local.dtype == local.grad.dtype == dtype
    torch.testing.assert_close(local.grad, plain.grad.to(dtype))
    assert model.remap_local.weight.grad.isfinite().all() and model.remap_local.weight.grad.any()


def test_scales_learn_faster_and_do_not_decay():
    model, criterion = nn.Linear(2, 3), rerank_criterion("joint")
    for no_bias_decay in (False, True):
        *groups, scales = parameter_groups((model, criterion), no_bias_decay, 0.01)
        assert scales == {"params": [*criterion.parameters()], "lr": 1.0, "weight_decay": 0.0}
        assert groups == parameter_groups((model,), no_bias_decay, 0.01)
    assert [(p.dim(), p.item()) for p in criterion.parameters()] == [(0, 10.0), (0, -6.0)]


def test_objectives():
    assert list(OBJECTIVES) == ["published", "joint", "chamfer"]
    with pytest.raises(ValueError, match="'cosine' is no score of pairs: choose from 'logit', 'chamfer'"):
        rerank_step(small_model(), nn.ModuleDict({"cosine": ScaledSoftmax()}))
    with pytest.raises(InputError, match=r"micro_batch=6 is no multiple of 5, but an anchor, its positive and its neg"):
        rerank_step(small_model(), rerank_criterion("chamfer", 3), micro_batch=6, num_negatives=3)
