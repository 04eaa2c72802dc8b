"""A backbone from outside the project: patches of eight pixels, values from -1 to 1, of photos resized otherwise."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import eval_global
import eval_rerank
import experiment_global
import experiment_rerank
from models.backbones import BACKBONES
from models.backbones.backbone import Backbone
from rrt import InputError, Reranker
from rrt.index import Index, update
from utils.experiment.run_folder import CommandError


class Patches(Backbone):
    """Each patch's projection, to a power."""

    channels, pixel_mean, pixel_std = 12, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    interpolation, crop_fraction, crop_multiple = "bicubic", 1.0, 8
    power = 1

    def __init__(self, arch: str, pretrained: bool):
        super().__init__()
        self.projection = nn.Conv2d(3, self.channels, 8, stride=8)

    def forward(self, pixels):
        return self.projection(pixels) ** self.power

    def fingerprint(self):
        yield f"power {self.power}".encode()


@pytest.fixture(autouse=True)
def known(monkeypatch):
    monkeypatch.setitem(BACKBONES, "patches", Patches)


@pytest.fixture
def settings(tiny, neighbours, tmp_path):
    """What makes the settings of a command."""
    model = {"arch": "patches", "normalize": True, "num_global_features": 8, "ert_normalize_before": True}
    data = {"batch_size": 6, "num_iterations": 3, "train_cache_nn_inds": str(neighbours / "train.pkl")}

    def of(folder, crop_size=40, sampler="random_id", **changes):
        return tiny(temp_dir=tmp_path / folder, model=model, dataset=data | vars_of(crop_size, sampler), **changes)

    def vars_of(crop_size, sampler):
        return {"crop_size": crop_size, "sampler": sampler}

    return of


def test_is_trained_evaluated_and_indexed(settings, observed, neighbours, photos, tmp_path, capsys, monkeypatch):
    candidates = str(neighbours / "test.pkl")
    observed(experiment_global.ex, **settings("global", epochs=1))
    first = str(tmp_path / "global" / "patches_sop.pt")
    trained = torch.load(first, weights_only=True)["state"]
    assert trained["backbone.projection.weight"].shape == (12, 3, 8, 8)
    rerank = {"sampler": "triplet", "cache_nn_inds": candidates, "epochs": 1, "micro_batch": 3}
    observed(experiment_rerank.ex, **settings("rerank", resume=first, **rerank))
    network = str(tmp_path / "rerank" / "patches_sop.pt")
    assert not torch.equal(
        torch.load(network, weights_only=True)["state"]["backbone.projection.weight"],
        trained["backbone.projection.weight"],
    )
    features = str(tmp_path / "features")
    kept = {"resume": network, "features": features}
    for printed in ("", "descriptors of 20 images are taken from"):
        capsys.readouterr()
        observed(eval_global.ex, **settings("eval_global", **kept))
        assert printed in capsys.readouterr().out
    found = observed(eval_rerank.ex, **settings("eval_rerank", cache_nn_inds=candidates, **kept))
    assert "taken from" in found.printed

    reranker = Reranker.from_pretrained(network)
    paths = sorted((photos / "toy_final").glob("*.JPG"))
    embedded = reranker.embed(paths)
    assert embedded.maps.shape == (len(paths), 16, 5, 5) and reranker.embed([]).maps.shape == (0, 16, 5, 5)
    pixels = np.asarray(Image.open(paths[0]).resize((40, 40), Image.Resampling.BICUBIC), np.float32)
    values = torch.from_numpy(pixels / 255).permute(2, 0, 1)[None] * 2 - 1
    state = torch.load(network, weights_only=True)["state"]
    maps = F.conv2d(values, *(state[f"backbone.projection.{name}"] for name in ("weight", "bias")), stride=8)
    expected = F.conv2d(maps, state["remap_local.weight"], state["remap_local.bias"])
    torch.testing.assert_close(embedded.maps[:1], expected, rtol=1e-4, atol=1e-5)

    update(tmp_path / "index", paths, reranker)
    ((best, *_),) = Index(tmp_path / "index").search(embedded[:1], top=3)
    assert best.photo == str(paths[0])

    digest = reranker.digest()
    monkeypatch.setattr(Patches, "power", 2)
    assert reranker.digest() != digest  # an index is then of another network
    capsys.readouterr()
    changed = observed(eval_global.ex, **settings("eval_global", **kept))
    assert "does not fit, by its 'network'" in changed.printed

    with pytest.raises(InputError, match="crop_size=36: the backbone takes multiples of 8"):
        Reranker.from_pretrained(network, crop_size=36)


def test_crops_that_it_does_not_take(settings):
    with pytest.raises(CommandError, match=r"crop_size=36: the backbone takes multiples of 8, such as 32 or 40"):
        eval_global.ex.run(config_updates=settings("out", crop_size=36))
