import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import get_model as torchvision_model

from models.ingredient import get_model, load_model
from tests.reference import META, assert_answer, pixels, published_model
from utils import num_of_trainable_params
from utils.errors import InputError

DEFAULT = META["default"]


def new(num_classes=10, **changes):
    return get_model(num_classes, **{**DEFAULT, **changes})


def names(model):
    return {name: [list(t.shape), str(t.dtype).removeprefix("torch.")] for name, t in model.state_dict().items()}


def test_state_of_the_published_checkpoints():
    assert names(new(11318)) == {name: [shape, dtype] for name, shape, dtype in META["state_dict"]}
    for variant, changes in META["variants"].items():
        expected = {name: [shape, dtype] for name, shape, dtype in META["variant_state"][variant]}
        assert names(new(50, **changes)) == expected


def test_trainable_parameters():
    assert num_of_trainable_params(new(11318)) == 27_472_375
    assert num_of_trainable_params(new(11318, freeze_backbone=True)) == 2_242_049


def test_initial_weights_follow_the_published_distribution():
    state = new(11318).state_dict()
    for name, (mean, std) in META["initial"].items():
        values = state[name].double().numpy()
        error = 6 / np.sqrt(values.size)
        assert values.mean() == pytest.approx(mean, abs=1.5 * error * std)
        assert values.std() == pytest.approx(std, rel=max(error, 0.02))


@pytest.mark.parametrize("variant", META["variants"])
def test_published_answers(variant):
    model = published_model(50, **META["variants"][variant]).eval()
    n, h, w = META["sizes"]["oblong"]
    with torch.no_grad():
        for part, got in zip(("logits", "g", "l"), model(pixels("images.oblong", n, 3, h, w)), strict=True):
            assert_answer(got, f"{variant}.oblong.{part}")


def test_uint8_pixels_give_the_same_as_floats():
    model = new(arch="resnet18").eval()
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        for a, b in zip(model(images), model(images.float() / 255), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("arch", ["resnet18", "ResNet34", "resnet101", "RESNET152"])
def test_other_backbones_are_torchvisions(arch):
    with torch.device("meta"):  # shapes alone
        model, other, images = new(arch=arch), torchvision_model(arch.lower()), torch.rand(1, 3, 64, 96)
    theirs = {name: t.shape for name, t in other.state_dict().items() if not name.startswith("fc.")}
    ours = model.state_dict()
    assert theirs == {name: ours[name].shape for name in theirs}
    maps = model.eval()(images)[2]
    assert maps.shape == (1, 128, 2, 3)


def test_heads_are_absent_where_sizes_are_equal():
    equal = new(arch="resnet18", num_global_features=512, num_local_features=512)
    assert not [name for name in equal.state_dict() if name.startswith("remap")]
    kept = new(arch="resnet18", num_global_features=512, remap=True)
    assert "remap.weight" in kept.state_dict()


def test_batch_norm_modes():
    def training_norms(model, kind):
        return {module.training for module in model.train().modules() if isinstance(module, kind)}

    assert training_norms(new(arch="resnet18", norm_layer="batch"), nn.BatchNorm2d) == {False}
    assert training_norms(new(arch="resnet18", norm_layer="batch"), nn.BatchNorm1d) == {True}
    assert training_norms(new(arch="resnet18", set_bn_eval=False), nn.BatchNorm2d) == {True}
    assert training_norms(new(arch="resnet18", set_bn_eval=False, freeze_backbone=True), nn.BatchNorm2d) == {False}


def test_frozen_parameters():
    model = new(arch="resnet18", freeze_backbone=True)
    trainable = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == {"remap_local", "matcher"}


def test_detached_classifier_sends_no_gradient():
    for detach in (True, False):
        model = published_model(5, arch="resnet18", detach=detach)
        model(torch.rand(2, 3, 64, 64))[0].sum().backward()
        assert (model.remap.weight.grad is None) == detach


def test_unknown_names_list_what_there_is():
    with pytest.raises(InputError, match=r"model\.norm_layer='vgg' is unknown: choose from None, 'layer'"):
        new(norm_layer="vgg")


def test_pretrained_weights_are_torchvisions(tmp_path, monkeypatch):
    weights = torchvision_model("resnet18").state_dict()
    monkeypatch.setattr("models.backbones.resnet.imagenet_weights", lambda arch: _without_fc(weights))
    state = new(arch="resnet18", pretrained=True).state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in _without_fc(weights).items())


def _without_fc(state):
    return {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}


def test_pretrained_without_a_network_says_how_to_go_on(monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(
        InputError, match=r"no route to host.*hub/checkpoints by hand, .*resume=FILE, .*pretrained=False"
    ):
        new(arch="resnet18", pretrained=True)


def test_a_resumed_model_fetches_no_pretrained_weights(monkeypatch, tmp_path):
    model = new(arch="resnet18")
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    monkeypatch.setattr("models.ingredient.get_model", lambda n, **changes: new(n, arch="resnet18", **changes))
    monkeypatch.setattr("models.backbones.resnet.imagenet_weights", lambda arch: pytest.fail("fetched"))
    loaded, _ = load_model(10, tmp_path / "weights.pt", torch.device("cpu"))
    assert torch.equal(loaded.backbone.conv1.weight, model.backbone.conv1.weight)
