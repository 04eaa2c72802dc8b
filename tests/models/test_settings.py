"""What follows from `NetworkSettings`: the config and its comments, rules, what is told and what kept features fit."""

from dataclasses import dataclass, fields

import pytest
import torch

import eval_global
from models.network import RerankingNetwork
from models.settings import ANSWER_SETTINGS, MODEL_RULES, NetworkSettings, setting
from rrt.pretrained import DEFAULTS
from tests.conftest import TINY
from tests.narrow import narrow
from utils.settings import FLAG


def test_the_config_and_its_comments(capsys):
    run = eval_global.ex.run("print_config", config_updates={"model": {"ert_nhead": 8}}, named_configs=["model.demo"])
    names = [part.name for part in fields(NetworkSettings)]
    assert sorted(run.config["model"]) == sorted(names)
    assert (run.config["model"]["arch"], run.config["model"]["ert_nhead"]) == ("resnet18", 8)
    assert set(names) - MODEL_RULES.keys() == {"ert_seq_len"}
    printed = capsys.readouterr().out
    for part in fields(NetworkSettings):
        (line,) = [line for line in printed.splitlines() if f" {part.name} = " in line]
        assert line.replace("\33[0m", "").rstrip().endswith(part.metadata["comment"]), line


@pytest.mark.parametrize(
    ("name", "remap", "tokens"), [("lite0", (128, 320), 49), ("dinov2_small", None, 49), ("resnet50", (128, 2048), 49)]
)
def test_named_configs(name, remap, tokens):
    """What they make, without weights."""
    given = eval_global.ex.run("print_config", named_configs=[f"model.{name}"]).config["model"]
    assert given["normalize"] and given["num_local_features"] % given["ert_nhead"] == 0
    settings = NetworkSettings(**given | {"pretrained": False})
    with torch.device("meta"):
        network = RerankingNetwork(3, settings).eval()
        _, descriptors, maps = network(torch.rand(1, 3, 224, 224))
        network.backbone.check_crop_size(224)
    assert descriptors.shape == (1, settings.num_global_features) and maps[0, 0].numel() == tokens
    assert getattr(network.remap, "weight", torch.empty(0)).shape == (remap or (0,))


def test_what_is_told_is_what_evaluation_depends_on():
    assert dict(DEFAULTS) == NetworkSettings(dropout=0.5, freeze_backbone=True, normalize=True).those("answers")
    assert set(ANSWER_SETTINGS) >= NetworkSettings().those("descriptors").keys() - {"normalize"}
    assert NetworkSettings(arch="ResNet18").those("answers")["arch"] == "resnet18"


@dataclass
class WithPooling(NetworkSettings):
    """A setting more, one that no tensor tells of."""

    pooling: str = setting("mean", FLAG, ("answers", "descriptors"))


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({}, True),
        ({"dropout": 0.5, "ert_nhead": 2, "ert_dropout": 0.1, "set_bn_eval": False}, True),
        ({"normalize": True}, False),
        ({"norm_layer": "layer"}, False),
        ({"pooling": "max"}, False),
    ],
)
def test_kept_features_fit_while_what_descriptors_depend_on_is_the_same(changes, same):
    def fingerprint(settings):
        torch.manual_seed(0)
        return list(RerankingNetwork(5, settings).fingerprint())

    with narrow():
        expected = fingerprint(WithPooling(**TINY["model"]))
        assert (fingerprint(WithPooling(**TINY["model"] | changes)) == expected) == same
