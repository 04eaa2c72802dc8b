import json
import resource
from functools import partial
from pathlib import Path
from traceback import format_exception

import pytest
import torch
from huggingface_hub import HfApi

from models.ingredient import model_ingredient
from models.settings import ANSWER_SETTINGS
from rrt import InputError, Reranker, pretrained
from rrt.pretrained import CARD, CONFIG, DEFAULTS, WEIGHTS
from sop.preparation.published import CHECKPOINTS
from tests.faults import limited, serving
from tests.rrt.conftest import CROP_SIZE, SETTINGS
from utils.io import hub
from utils.io.checkpoint import save_tensors

DIFFERING = {name: value for name, value in SETTINGS.items() if DEFAULTS[name] != value}


def test_the_published_settings():
    config = model_ingredient.named_configs["resnet50"]
    settings = model_ingredient.configurations[0]() | config()
    assert {name: settings[name] for name in ANSWER_SETTINGS} == DEFAULTS


def test_folder_there_and_back(reranker, paths, tmp_path, monkeypatch):
    reranker.save_pretrained(tmp_path / "tiny")
    assert {path.name for path in (tmp_path / "tiny").iterdir()} == {CONFIG, WEIGHTS, CARD}
    loaded = Reranker.from_pretrained(tmp_path / "tiny", device="cpu")
    assert (loaded.crop_size, loaded.settings) == (CROP_SIZE, SETTINGS)
    assert loaded.digest() == reranker.digest()
    assert loaded.rank(paths[0], paths) == reranker.rank(paths[0], paths)

    monkeypatch.setattr(hub, "ask", lambda endpoint: None)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *names, **options: str(tmp_path.joinpath(*names)))
    monkeypatch.chdir(tmp_path.parent)
    (tmp_path / "someone").mkdir()
    (tmp_path / "tiny").rename(tmp_path / "someone" / "tiny-v1.0")
    assert Reranker.from_pretrained("someone/tiny-v1.0", device="cpu").digest() == reranker.digest()


def test_fetches_the_published_one(content, tmp_path, monkeypatch):
    def fetch(published, repository, folder):
        assert published.names == ("rrt_r50_sop_rerank_finetune.pt",)
        save_tensors(folder / "rrt_r50_sop_rerank_finetune.pt", {"state": content["state"]})

    monkeypatch.setattr(pretrained, "fetch_published", fetch)
    monkeypatch.setattr(pretrained, "HF_HOME", str(tmp_path))
    monkeypatch.setattr(pretrained, "DEFAULTS", SETTINGS)  # a small network in its place
    loaded = Reranker.from_pretrained("published", device="cpu")
    assert loaded.crop_size == 224
    assert torch.equal(loaded.network.state_dict()["conv1.weight"], content["state"]["conv1.weight"])


def test_a_checkpoint_without_settings(content, reranker, tmp_path):
    save_tensors(tmp_path / "bare.pt", content["state"])
    with pytest.raises(InputError, match=r"does not have its settings: .* arch='resnet50', .*ert_nhead=4"):
        Reranker.from_pretrained(tmp_path / "bare.pt")
    loaded = Reranker.from_pretrained(tmp_path / "bare.pt", CROP_SIZE, "cpu", **DIFFERING)
    assert loaded.digest() == reranker.digest()
    with pytest.raises(InputError, match=r"does not fit this model: .*was it trained with other"):
        Reranker.from_pretrained(tmp_path / "bare.pt", arch="resnet18")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arch": "resnet34"}, "was trained with model.arch=resnet18, not resnet34"),
        ({"arch": "alexnet"}, "was trained with model.arch=resnet18, not alexnet"),
        ({"colour": 1}, "'colour' is no setting of the network: choose from"),
        ({"crop_size": 5}, "crop_size=5: give a whole number from 32"),
    ],
)
def test_settings_that_do_not_fit(saved, options, message):
    with pytest.raises(InputError, match=message):
        Reranker.from_pretrained(saved, **options)


def test_a_matcher_that_was_not_trained(content, tmp_path):
    save_tensors(tmp_path / "global.pt", content | {"origin": {"model": SETTINGS, "matcher_trained": False}})
    with pytest.raises(InputError, match="matcher that was never trained"):
        Reranker.from_pretrained(tmp_path / "global.pt")


def test_what_is_no_model(reranker, tmp_path):
    with pytest.raises(InputError, match="None is no model: give a checkpoint"):
        Reranker.from_pretrained(None)
    with pytest.raises(InputError, match=r"nowhere\.pt does not exist: give a checkpoint"):
        Reranker.from_pretrained("nowhere.pt")
    with pytest.raises(InputError, match=r"config\.json does not exist"):
        Reranker.from_pretrained(tmp_path)
    reranker.save_pretrained(tmp_path)
    config, weights = json.loads((tmp_path / CONFIG).read_text()), (tmp_path / WEIGHTS).read_bytes()
    with pytest.raises(InputError, match="has other values of 'arch'"):
        Reranker.from_pretrained(tmp_path, arch="resnet34")
    for damaged in ("", "[]", "[" * 100_000, json.dumps(config | {"network": 3}), json.dumps({"crop_size": 64})):
        (tmp_path / CONFIG).write_text(damaged)
        with pytest.raises(InputError, match="not as save_pretrained writes it"):
            Reranker.from_pretrained(tmp_path)
    (tmp_path / CONFIG).write_text(json.dumps(config | {"network": SETTINGS | {"ert_nhead": "four"}}))
    with pytest.raises(InputError, match="ert_nhead='four'"):
        Reranker.from_pretrained(tmp_path)
    (tmp_path / CONFIG).write_text(json.dumps(config))
    (tmp_path / WEIGHTS).write_bytes(weights[:-9])
    with pytest.raises(InputError, match="could not be read"):
        Reranker.from_pretrained(tmp_path)


def test_the_weights_of_a_folder(reranker, tmp_path):
    name = "tiny-v1.safetensors"
    reranker.save_pretrained(tmp_path)
    (tmp_path / WEIGHTS).rename(tmp_path / name)
    assert Reranker.from_pretrained(tmp_path / name, device="cpu").digest() == reranker.digest()
    (tmp_path / CONFIG).unlink()
    with pytest.raises(InputError, match=r"config\.json does not exist"):
        Reranker.from_pretrained(tmp_path / name)


def test_absurd_sizes_are_never_allocated(reranker, content, tmp_path):
    absurd = {"ert_num_encoder_layers": 50, "ert_dim_feedforward": 1_000_000}
    reranker.save_pretrained(tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(config | {"network": SETTINGS | absurd}))
    save_tensors(tmp_path / "x.pt", content | {"origin": content["origin"] | {"model": SETTINGS | absurd}})
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    for source in (tmp_path, tmp_path / "x.pt"):
        with limited(resource.RLIMIT_AS, held + 2**30), pytest.raises(InputError, match="does not fit this model"):
            Reranker.from_pretrained(source)


def test_without_a_network_it_is_told_at_once(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("NO_PROXY", "*")
    with serving() as gone:
        monkeypatch.setattr(hub.constants, "ENDPOINT", gone.url)
        monkeypatch.setattr("sop.preparation.published.HfApi", partial(HfApi, endpoint=gone.url))
    monkeypatch.setattr(pretrained, "HF_HOME", str(tmp_path))
    monkeypatch.setattr("time.sleep", None)  # as between attempts
    for source, message in (
        (
            "someone/none",
            rf"^someone/none is no file or folder here, and .* of {gone.url}/someone/none could not be fetched \(.*ref",
        ),
        ("published", rf"\(.*refused\): try again later, or fetch {CHECKPOINTS.names[-1]} by hand from {gone.url}/"),
    ):
        with pytest.raises(InputError, match=message) as raised:
            Reranker.from_pretrained(source)
        assert "".join(format_exception(raised.value)).count("Traceback") == 1
    assert capfd.readouterr() == ("", "")


def test_what_was_fetched_is_there_without_a_network(reranker, tmp_path, monkeypatch):
    reranker.save_pretrained(tmp_path)

    def from_cache(repository, name, local_files_only):
        assert local_files_only
        return str(tmp_path / name)

    monkeypatch.setattr(hub, "ask", lambda endpoint: Path("/nowhere").read_text())
    monkeypatch.setattr("huggingface_hub.hf_hub_download", from_cache)
    assert Reranker.from_pretrained("someone/tiny", device="cpu").digest() == reranker.digest()
