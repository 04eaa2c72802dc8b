"""What a network costs, in one line before any work."""

import itertools
import re
import time

import pytest
import torch

import eval_global
import eval_rerank
import experiment_global
import experiment_rerank
from models.costs import blank_maps, bytes_text, costs_text, pairs_a_second, print_costs
from rrt.__main__ import main
from tests.models.test_timm import network_of


def test_the_text():
    """49 tokens of 384 float32: 49 * 384 * 4 = 75,264 bytes, of 60,502 photos 4,553,622,528."""
    maps = torch.zeros(1, 384, 7, 7)
    name = "vit_small_patch14_dinov2.lvd142m"
    assert costs_text(name, maps, 60502, (1234.5, "matcher"), "apache-2.0") == (
        f"{name}: 49 tokens of 384 channels a photo, 75.3 kB, 4.55 GB for 60,502 photos; "
        "about 1,200 pairs/s by the matcher; licence of its weights: apache-2.0"
    )
    assert costs_text("one", maps[..., :2, :3].bfloat16(), 2, None, "cc-by-nc-4.0") == (
        "one: 6 tokens of 384 channels a photo, 4.61 kB, 9.22 kB for 2 photos; "
        "licence of its weights: cc-by-nc-4.0, not for commercial use"
    )
    assert costs_text("one", maps, 1, (7.4, "chamfer"), None).endswith(
        "about 7 pairs/s by the Chamfer similarity; licence of its weights: unknown"
    )


@pytest.mark.parametrize(
    ("licence", "is_free"),
    [("mit", True), ("dinov3-license", True), ("fair-noncommercial-research", False), ("apple-amlr", False)],
)
def test_licences_that_are_not_for_all(licence, is_free):
    assert ("not for commercial use" in costs_text("one", torch.zeros(1, 4, 1, 1), 1, None, licence)) != is_free


def test_bytes():
    assert [bytes_text(n) for n in (0, 784, 1500, 2_500_000, 1e9)] == [
        "0 bytes",
        "784 bytes",
        "1.5 kB",
        "2.5 MB",
        "1 GB",
    ]


def test_it_is_measured_and_changes_nothing(monkeypatch, capsys):
    network = network_of("test_vit", norm_layer="batch", ert_dropout=0.5, num_local_features=8, ert_nhead=2).train()
    before, state = torch.get_rng_state(), {name: part.clone() for name, part in network.state_dict().items()}
    maps = blank_maps(network, 128, torch.bfloat16)
    assert maps.shape == (1, 8, 7, 7) and maps.dtype == torch.bfloat16
    seconds = itertools.count(step=0.1)
    monkeypatch.setattr(time, "perf_counter", lambda: next(seconds))
    for scorer in ("matcher", "chamfer"):
        assert pairs_a_second(network, maps, scorer) == pytest.approx(100)
    print_costs(network, 128, 1000, scorer="matcher")
    assert capsys.readouterr().out == (
        "test_vit: 49 tokens of 8 channels a photo, 1.57 kB, 1.57 MB for 1,000 photos; about 100 pairs/s by the "
        "matcher; licence of its weights: apache-2.0\n"
    )
    assert network.training and network.matcher.training and torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(part, state[name]) for name, part in network.state_dict().items())
    print_costs(network_of("resnet18"), 64, 1000)
    assert capsys.readouterr().out == ""


LINE = r"test_vit: 4 tokens of 16 channels a photo, 256 bytes, 5\.12 kB for 20 photos; {}licence of its weights: apache"
RATE = r"about [\d,]+ pairs/s by the {}; "


@pytest.mark.parametrize(
    ("ex", "changes", "rate"),
    [
        (experiment_global.ex, {"epochs": 0}, ""),
        (experiment_rerank.ex, {"epochs": 0}, RATE.format("matcher")),
        (experiment_rerank.ex, {"epochs": 0, "objective": "chamfer"}, RATE.format("Chamfer similarity")),
        (eval_global.ex, {}, ""),
        (eval_rerank.ex, {"scorer": "chamfer"}, RATE.format("Chamfer similarity")),
    ],
)
def test_the_commands_tell(ex, changes, rate, tiny, neighbours, observed, tmp_path):
    data = {"crop_size": 32, "batch_size": 6, "train_cache_nn_inds": str(neighbours / "train.pkl")}
    if ex in (experiment_global.ex, experiment_rerank.ex):
        data["sampler"] = "random_id" if ex is experiment_global.ex else "triplet"
    if ex in (experiment_rerank.ex, eval_rerank.ex):
        changes = changes | {"cache_nn_inds": str(neighbours / "test.pkl")}
    model = {"arch": "test_vit"}
    if ex is eval_rerank.ex:
        torch.save(network_of("test_vit").backbone.network.state_dict(), tmp_path / "weights.pth")
        model["pretrained"] = str(tmp_path / "weights.pth")
    run = observed(ex, **tiny(**changes, temp_dir=tmp_path / "run", dataset=data, model=model))
    (line,) = [line for line in run.printed.splitlines() if line.startswith("test_vit: ")]
    assert re.match(LINE.format(rate), line), line


def test_an_index_tells(photos, tmp_path, capsys):
    model = ["--backbone", "tf_efficientnet_lite0", "--crop-size", "32"]
    assert main(["index", str(photos / "toy_final"), "--to", str(tmp_path / "index"), *model]) == 0
    costs = r"tf_efficientnet_lite0: 1 tokens of 128 channels a photo, 512 bytes, 22\.5 kB for 44 photos; "
    assert re.match(
        costs + r"about [\d,]+ pairs/s by the Chamfer similarity; licence of its weights: apache-2\.0\n",
        capsys.readouterr().out,
    )
