"""A loss with weights of its own, written outside the project: a proxy for each class, and a bias on the logits."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import experiment_global
from tests.processes import in_processes
from tests.test_continue import Killed, killed_after
from utils.experiment.run_folder import CommandError
from utils.runtime.ranks import rank
from utils.training.resume import LAST

CLASSES, WIDTH = 6, 16  # of the tiny photos and the tiny network


class Proxies(nn.Module):
    """Cross-entropy of each descriptor's similarities with the classes' proxies, and of the classifier's logits."""

    def __init__(self, temperature: float):
        super().__init__()
        self.temperature = temperature
        first = torch.randn(CLASSES, WIDTH) + rank()  # the first process's weights are everybody's
        self.proxies, self.bias = nn.Parameter(first), nn.Parameter(torch.zeros(CLASSES))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, logits, descriptors, labels):
        self.calls += 1
        similarities = descriptors @ F.normalize(self.proxies, dim=1).T / self.temperature
        return F.cross_entropy(similarities, labels) + F.cross_entropy(logits + self.bias, labels)


@pytest.fixture
def settings(tiny, monkeypatch, tmp_path):
    """What makes the settings of a training of 2 epochs of 3 iterations, in a folder."""
    monkeypatch.setattr(experiment_global, "Contrastive", Proxies)
    data = {"batch_size": 6, "num_iterations": 3, "sampler": "random_id"}

    def of(folder, **changes):
        common = {"epochs": 2, "lr": 0.1, "no_bias_decay": True, "scheduler_tau": [1], "model": {"normalize": True}}
        return tiny(**common | changes, temp_dir=tmp_path / folder, dataset=data)

    return of


def run(observed, settings):
    if rank():
        experiment_global.ex.run(config_updates=settings)
        return None
    run = observed(experiment_global.ex, **settings)
    return {name: series["values"] for name, series in run.metrics.items()}


def test_two_processes_come_to_what_one_comes_to(observed, settings, tmp_path):
    expected = run(observed, settings("one"))
    found, _ = in_processes(2, lambda: run(observed, settings("two")), tmp_path / "results")
    np.testing.assert_allclose(found["train.loss"], expected["train.loss"], rtol=1e-5)
    one, two = (torch.load(tmp_path / folder / LAST, weights_only=True) for folder in ("one", "two"))
    torch.testing.assert_close(two["criterion"], one["criterion"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(two["model"], one["model"], rtol=1e-3, atol=1e-4)
    assert one["criterion"]["bias"].abs().min() > 1e-3 and one["criterion"]["calls"] == 6  # trained
    assert max(len(group["params"]) for group in one["optimizer"]["param_groups"]) < len(one["model"])


def test_an_interrupted_run_goes_on_as_if_it_had_not_been(observed, settings, tmp_path, monkeypatch):
    whole = run(observed, settings("whole"))
    with monkeypatch.context() as patch:
        killed_after(4, patch)
        with pytest.raises(Killed):
            observed(experiment_global.ex, **settings("killed", save_minutes=0))
    assert run(observed, settings("killed", continue_run=True)) == whole
    expected, found = (torch.load(tmp_path / folder / LAST, weights_only=True) for folder in ("whole", "killed"))
    for part in ("model", "criterion"):
        assert all(map(torch.equal, expected[part].values(), found[part].values()))
    assert (tmp_path / "whole" / "resnet18_sop.pt").read_bytes() == (
        tmp_path / "killed" / "resnet18_sop.pt"
    ).read_bytes()


@pytest.mark.parametrize("change", ["none", "other", "nan"])
def test_a_last_file_without_its_weights_is_refused(observed, settings, tmp_path, change):
    run(observed, settings("run", epochs=1))
    content = torch.load(tmp_path / "run" / LAST, weights_only=True)
    if change == "none":
        del content["criterion"]
    elif change == "other":
        content["criterion"]["proxies"] = torch.zeros(CLASSES + 1, WIDTH)
    else:
        content["criterion"]["bias"][0] = torch.nan
    torch.save(content, tmp_path / "run" / LAST)
    with pytest.raises(CommandError, match=r"last\.pt (does not fit this model|holds NaN)"):
        observed(experiment_global.ex, **settings("run", continue_run=True))


def test_an_older_last_file_of_a_loss_without_weights(observed, settings, tmp_path, monkeypatch):
    monkeypatch.undo()
    whole = run(observed, settings("whole"))
    run(observed, settings("older", epochs=1))
    content = torch.load(tmp_path / "older" / LAST, weights_only=True)
    assert content.pop("criterion") == {}
    torch.save(content, tmp_path / "older" / LAST)
    assert run(observed, settings("older", continue_run=True)) == whole
