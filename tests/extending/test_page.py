"""What docs/extending.md shows works."""

import re
import shlex
from dataclasses import fields

import numpy as np
import pytest
import torch

import eval_global
import experiment_global
import experiment_rerank
from models.backbones import BACKBONES
from models.network import RerankingNetwork
from tests import ROOT
from tests.conftest import TINY, draw_photo
from tests.narrow import narrow
from utils import pickle_load

PAGE = (ROOT / "docs" / "extending.md").read_text()
SECTIONS = dict(section.split("\n", 1) for section in PAGE.split("\n## ")[1:])


def code_of(section: str) -> dict:
    """The names that the blocks of a section define."""
    names: dict = {"__name__": __name__}
    for block in re.findall(r"```python\n(.*?)```", SECTIONS[section], re.DOTALL):
        exec(block, names)
    return names


def test_the_lines_that_a_loss_replaces_are_there():
    for section, command in (("A loss on descriptors", "global"), ("A loss for reranking", "rerank")):
        line = re.findall(r"^    criterion = .*", SECTIONS[section], re.MULTILINE)[0]
        assert f"        {line.strip()}\n" in (ROOT / f"experiment_{command}.py").read_text()


def test_a_loss_on_descriptors(tiny, observed, tmp_path, monkeypatch):
    loss = code_of("A loss on descriptors")["ProxyLoss"]
    monkeypatch.setattr(experiment_global, "Contrastive", lambda temperature: loss(6, 16, temperature))
    data = {"batch_size": 6, "num_iterations": 3, "sampler": "random_id"}
    run = observed(experiment_global.ex, **tiny(epochs=1, temp_dir=tmp_path, dataset=data))
    assert len(run.metrics["train.loss"]["values"]) == 3
    assert torch.load(tmp_path / "last.pt")["criterion"]["proxies"].shape == (6, 16)


@pytest.mark.parametrize("name", ["MarginLoss", "LOSSES"])
def test_a_loss_for_reranking(tiny, observed, neighbours, tmp_path, monkeypatch, name):
    code = code_of("A loss for reranking")
    assert code["MarginLoss"]()(torch.tensor([2.0, 0.0]), torch.tensor([0.0, 1.5])).item() == 1.25
    criterion = code["MarginLoss"]() if name == "MarginLoss" else code["LOSSES"]
    monkeypatch.setattr(experiment_rerank, "rerank_criterion", lambda objective, num_negatives: criterion)
    data = {"sampler": "triplet", "batch_size": 24, "train_cache_nn_inds": str(neighbours / "train.pkl")}
    files = {"temp_dir": tmp_path, "cache_nn_inds": str(neighbours / "test.pkl")}
    run = observed(experiment_rerank.ex, **tiny(epochs=1, dataset=data, **files))
    assert len(run.metrics["train.loss"]["values"]) > 0
    kept = {"MarginLoss": [], "LOSSES": ["chamfer.b", "chamfer.c"]}[name]
    assert list(torch.load(tmp_path / "last.pt")["criterion"]) == kept


def test_a_backbone(tiny, observed, tmp_path, monkeypatch):
    monkeypatch.setitem(BACKBONES, "patches", code_of("A backbone")["Patches"])
    run = observed(eval_global.ex, **tiny(temp_dir=tmp_path, model={"arch": "patches"}))
    assert run.result == 100.0


def test_a_setting_of_the_network():
    settings = code_of("A setting of the network")["WithPooling"]
    assert fields(settings)[-1].name == "pooling"
    with narrow():
        mean, most = (
            next(RerankingNetwork(5, settings(**TINY["model"], pooling=how)).fingerprint()) for how in ("mean", "max")
        )
    assert mean != most


@pytest.mark.parametrize("columns", [1, 3])
def test_a_data_set_and_a_measure(tiny, observed, tmp_path, monkeypatch, columns):
    monkeypatch.chdir(tmp_path)
    for number in range(4):
        for i in range(4):
            draw_photo(tmp_path / "photos" / str(number) / f"{i}.JPG", number, i)
    code_of("A data set")["write_lists"](tmp_path / "photos")
    (command,) = re.findall(r"```sh\n(.*?)```", SECTIONS["A data set"], re.DOTALL)
    _, script, _, *words = shlex.split(command)
    assert script == "experiment_global.py"
    settings = tiny(epochs=1, temp_dir="run", dataset={"batch_size": 4, "num_identities": 2})
    del settings["dataset"]["data_path"]
    given = [f"{part}.{key}={value}" for part in ("dataset", "model") for key, value in settings.pop(part).items()]
    given += [f"{key}={value}" for key, value in settings.items()]
    experiment_global.ex.run_commandline([script, "with", *words, *given])
    data = {"data_path": str(tmp_path / "photos")}
    observed(eval_global.ex, **tiny(temp_dir=tmp_path / "out", resume="run/resnet18_sop.pt", dataset=data))
    measure = code_of("A measure")["precision_at"]
    positions = pickle_load(tmp_path / "out" / "nn_inds.pkl")
    matches = [[int(other) // 4 == row // 4 for other in found[:columns]] for row, found in enumerate(positions)]
    assert measure(columns, tmp_path / "out", tmp_path / "photos") == pytest.approx(100 * np.mean(matches))
