"""The commands with timm's networks: a ViT with layer norms, and EfficientNet-lite0 with the weights of its package."""

import json

import numpy as np
import pytest
import timm
import torch

import eval_global
import eval_rerank
import experiment_global
import experiment_rerank
from models.backbones import make_backbone
from tests.processes import in_processes
from tests.test_continue import Killed, killed_after, outcome
from utils.experiment.run_folder import CommandError
from utils.runtime.ranks import rank
from utils.training.resume import ADDED

LITE0 = "tf_efficientnet_lite0"
TRAININGS = {
    "global": (experiment_global.ex, {}),
    "global token": (experiment_global.ex, {}),  # with all settings of a timm network
    "global lite0": (experiment_global.ex, {}),
    "frozen": (experiment_rerank.ex, {"frozen_views": 2, "objective": "chamfer"}),
    "joint": (experiment_rerank.ex, {"objective": "joint"}),
}


def test_a_folder_as_backbone_names_a_checkpoint_in_temp_dir(tiny, observed, tmp_path):
    network = timm.create_model("test_vit", num_classes=0)
    folder = tmp_path / "network"
    timm.models.save_for_hf(network, folder)
    model = {"arch": f"local-dir:{folder}", "pretrained": False, "normalize": True}
    data = {"crop_size": 32, "batch_size": 6, "num_iterations": 1, "sampler": "random_id"}
    settings = tiny(epochs=1, temp_dir=tmp_path / "out", model=model, dataset=data)
    observed(experiment_global.ex, **settings)
    name = f"local-dir{folder}_sop.pt".replace("/", "_")
    assert {path.name for path in (tmp_path / "out").glob("*.pt")} == {name, "last.pt"}
    observed(experiment_global.ex, **settings | {"epochs": 2, "continue_run": True})


@pytest.fixture
def training(tiny, neighbours, tmp_path):
    """What makes the command and the settings of a training of two epochs in a folder."""

    def of(kind, folder, **changes):
        ex, settings = TRAININGS[kind]
        model = {"arch": LITE0 if "lite0" in kind else "test_vit", "freeze_backbone": kind == "frozen"}
        model |= {"pretrained": "lite0" in kind, "normalize": True}
        model |= {"pool": "token", "backbone_lr": 1e-4, "grad_checkpointing": True} if "token" in kind else {}
        data = {"crop_size": 32, "batch_size": 6, "num_iterations": 3, "sampler": "random_id"}
        if ex is experiment_rerank.ex:
            data |= {"batch_size": 12, "sampler": "triplet", "train_cache_nn_inds": str(neighbours / "train.pkl")}
            settings = settings | {"cache_nn_inds": str(neighbours / "test.pkl")}
        common = {"epochs": 2, "lr": 0.001, "scheduler_tau": [1], "temp_dir": tmp_path / folder}
        return ex, tiny(**common | settings | changes, model=model, dataset=data)

    return of


def checkpoint_of(folder, kind):
    return folder / f"{LITE0 if 'lite0' in kind else 'test_vit'}_sop.pt"


@pytest.mark.parametrize("kind", TRAININGS)
def test_a_killed_training_goes_on_as_if_it_had_not_been(training, observed, tmp_path, monkeypatch, kind):
    ex, settings = training(kind, "whole")
    run = observed(ex, **settings)
    whole = outcome(run, checkpoint_of(tmp_path / "whole", kind))
    assert (
        len(run.metrics["train.loss"]["values"]) in (6, 12) and np.isfinite(run.metrics["train.loss"]["values"]).all()
    )
    with monkeypatch.context() as patch:
        killed_after(4, patch)
        with pytest.raises(Killed):
            observed(ex, **settings | {"temp_dir": str(tmp_path / "killed"), "save_minutes": 0})
    continued = observed(ex, **settings | {"temp_dir": str(tmp_path / "killed"), "continue_run": True})
    assert outcome(continued, checkpoint_of(tmp_path / "killed", kind)) == whole


def test_an_older_run_goes_on(training, observed, tmp_path):
    """One whose `last.pt` knows nothing of later settings."""
    ex, settings = training("global", "whole")
    whole = outcome(observed(ex, **settings), checkpoint_of(tmp_path / "whole", "global"))
    settings["temp_dir"] = str(tmp_path / "older")
    observed(ex, **settings | {"epochs": 1})
    content = torch.load(tmp_path / "older" / "last.pt", weights_only=True)
    before = json.loads(content["about"]["settings"])
    later = [name for name in ADDED if before.pop(name, before) is not before]
    assert {"model.local_size", "model.pool", "model.backbone_lr"} <= set(later)
    content["about"]["settings"] = json.dumps(before)
    torch.save(content, tmp_path / "older" / "last.pt")
    with pytest.raises(CommandError, match=r"model\.pool='token', not 'avg'"):
        observed(ex, **settings | {"continue_run": True, "model": settings["model"] | {"pool": "token"}})
    continued = observed(ex, **settings | {"continue_run": True})
    assert outcome(continued, checkpoint_of(tmp_path / "older", "global")) == whole


def test_training_begins_with_the_weights_of_the_package(training, observed, tmp_path):
    ex, settings = training("global lite0", "run", epochs=0)
    observed(ex, **settings)
    state = torch.load(checkpoint_of(tmp_path / "run", "lite0"), weights_only=True)["state"]
    for name, tensor in make_backbone(LITE0, pretrained=True).state_dict().items():
        assert torch.equal(state[f"backbone.{name}"], tensor)


@pytest.mark.parametrize("kind", ["global", "joint"])
def test_two_processes_come_to_what_one_comes_to(training, observed, tmp_path, kind):
    def run(folder):
        ex, settings = training(kind, folder)
        if rank():
            ex.run(config_updates=settings)
            return None
        return observed(ex, **settings).metrics

    expected = run("one")
    (found, _) = in_processes(2, lambda: run("two"), tmp_path / "results")
    for series in ("train.loss", "val.recall@1"):
        np.testing.assert_allclose(found[series]["values"], expected[series]["values"], rtol=1e-3, atol=1e-4)


def test_a_chain_of_commands(training, observed, tiny, neighbours, tmp_path):
    """Global training, then reranking from it, and both evaluations of that."""
    ex, settings = training("global", "global", epochs=1)
    observed(ex, **settings)
    first = str(checkpoint_of(tmp_path / "global", "global"))
    ex, settings = training("joint", "rerank", epochs=1, resume=first)
    reranked = observed(ex, **settings)
    before = torch.load(first, weights_only=True)["state"]
    best = str(checkpoint_of(tmp_path / "rerank", "joint"))
    last = torch.load(tmp_path / "rerank" / "last.pt", weights_only=True)["model"]
    moved = [name for name in before if not torch.equal(before[name], last[name])]
    assert {name.split(".")[0] for name in moved} == {"backbone", "remap_local", "matcher"}
    evaluated = tiny(resume=best, model=settings["model"], dataset=settings["dataset"])
    evaluated["features"] = str(tmp_path / "features")
    found = observed(eval_global.ex, **evaluated | {"temp_dir": str(tmp_path / "eval_global")})
    assert set(found.info["recall"]) == {"1", "10"}
    cached = evaluated | {"cache_nn_inds": str(neighbours / "test.pkl"), "temp_dir": str(tmp_path / "eval_rerank")}
    found = observed(eval_rerank.ex, **cached)
    assert "taken from" in found.printed and "logit + cosine + chamfer" in found.info["measures"]
    assert reranked.result is not None
    native = cached | {"model": cached["model"] | {"local_size": 3}}
    with pytest.raises(CommandError, match=r"was trained with model\.local_size=None, not 3: set the same"):
        observed(eval_rerank.ex, **native)


def test_a_pretrained_backbone_is_evaluated_without_training(observed, tiny, neighbours, tmp_path):
    model = {"arch": LITE0, "pretrained": True, "normalize": True}
    own = {"num_global_features": None, "num_local_features": None, "ert_nhead": 1}
    settings = tiny(model=model | own, dataset={"crop_size": 64}, temp_dir=tmp_path / "global")
    first = observed(eval_global.ex, **settings)
    settings |= {"temp_dir": str(tmp_path / "rerank"), "cache_nn_inds": str(tmp_path / "global" / "nn_inds.pkl")}
    found = observed(eval_rerank.ex, **settings, scorer="chamfer")
    assert found.info["measures"]["global"]["R@1"] == first.info["recall"]["1"] >= 50
    assert "chamfer + cosine" in found.info["measures"]
    said = "the backbone's channels are projected at random: model.num_global_features=None and"
    assert said not in found.printed
    projected = settings | {"model": settings["model"] | {"num_local_features": 16}}
    assert said in observed(eval_rerank.ex, **projected, scorer="chamfer").printed
    for changes in ({"scorer": "matcher"}, {"scorer": "chamfer", "model": settings["model"] | {"pretrained": False}}):
        with pytest.raises(CommandError, match="no checkpoint was given: reranking needs a trained model"):
            observed(eval_rerank.ex, **settings | changes)


def test_crops_that_do_not_fit_end_a_command_at_once(training, observed):
    ex, settings = training("global", "run")
    settings["dataset"]["crop_size"] = 40
    with pytest.raises(CommandError, match="crop_size=40 does not fit test_vit: take 32 or 48 or 160"):
        observed(ex, **settings)
