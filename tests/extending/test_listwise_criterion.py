"""A reranking loss that compares a query's positive with its negative, written outside the project."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import experiment_rerank
from tests.processes import in_processes
from tests.reference import pixels
from tests.test_processes import small_model
from utils.runtime.ranks import rank
from utils.training.losses import BinaryCrossEntropyWithLogits, MeanOverPairs
from utils.training.steps import rerank_step


class Listwise(nn.Module):
    """-log of the positive's part of the softmax over a query's two candidates, at a learnt temperature."""

    def __init__(self):
        super().__init__()
        self.log_temperature = nn.Parameter(torch.zeros(1))

    def forward(self, positive_logits, negative_logits):
        logits = torch.stack((positive_logits, negative_logits), dim=1) / self.log_temperature.exp()
        return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64, device=logits.device))


@pytest.mark.parametrize("micro_batch", [None, 6])
def test_loss_and_gradient_against_plain_autograd(micro_batch):
    model, criterion, images = small_model().train(), Listwise(), pixels("listwise", 15, 3, 64, 64)
    loss, accuracy = rerank_step(model, criterion, micro_batch=micro_batch)(images, None, lambda loss: loss)
    found = [parameter.grad for parameter in (criterion.log_temperature, model.matcher.classifier.weight)]
    local = model(images)[2]
    positive, negative = (model.matcher(None, local[0::3], None, local[role::3]) for role in (1, 2))
    expected = F.softplus((negative - positive) / criterion.log_temperature.exp()).mean()
    gradients = torch.autograd.grad(expected, [criterion.log_temperature, model.matcher.classifier.weight])
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(found, list(gradients), rtol=1e-4, atol=1e-7)
    assert accuracy.item() == pytest.approx(((positive > 0).sum() + (negative <= 0).sum()).item() / 10)


def test_pairs_judged_by_themselves():
    positive, negative = torch.randn(5), torch.randn(5)
    expected = (F.softplus(-positive).sum() + F.softplus(negative).sum()) / 10
    torch.testing.assert_close(MeanOverPairs(BinaryCrossEntropyWithLogits())(positive, negative), expected)


def test_the_command_on_one_process_and_on_two(tiny, observed, neighbours, tmp_path, monkeypatch):
    monkeypatch.setattr(experiment_rerank, "rerank_criterion", lambda objective, num_negatives: Listwise())
    data = {"sampler": "triplet", "batch_size": 24, "train_cache_nn_inds": str(neighbours / "train.pkl")}

    def run(folder):
        settings = tiny(
            epochs=2, lr=0.01, temp_dir=tmp_path / folder, dataset=data, cache_nn_inds=str(neighbours / "test.pkl")
        )
        if rank():
            experiment_rerank.ex.run(config_updates=settings)
            return None
        return observed(experiment_rerank.ex, **settings).metrics["train.loss"]["values"]

    expected = run("one")
    np.testing.assert_allclose(in_processes(2, lambda: run("two"), tmp_path / "results")[0], expected, rtol=1e-4)
    one, two = (torch.load(tmp_path / folder / "last.pt")["criterion"] for folder in ("one", "two"))
    torch.testing.assert_close(two, one, rtol=1e-3, atol=1e-5)
    assert one["log_temperature"].abs() > 1e-3


def test_it_is_computed_without_tf32():
    seen = []

    def criterion(positive_logits, negative_logits):
        seen.append(torch.backends.cuda.matmul.fp32_precision)
        return (negative_logits - positive_logits).mean()

    torch.backends.cuda.matmul.fp32_precision = "tf32"
    rerank_step(small_model().train(), criterion)(pixels("listwise", 6, 3, 64, 64), None, lambda loss: loss)
    assert seen == ["ieee"] and torch.backends.cuda.matmul.fp32_precision == "tf32"
