"""Heads of pretrained backbones: the shipped one, files that are none, and how one is made."""

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from models.backbones import make_backbone
from rrt import InputError, Reranker
from rrt.heads import FILES, read_head, write_head
from tools import make_head
from utils.retrieval.chamfer import Chamfer

LITE0 = "tf_efficientnet_lite0"
SHIPPED = FILES[LITE0]


@pytest.fixture(scope="module")
def with_head() -> Reranker:
    return Reranker.from_backbone(LITE0, crop_size=64, device="cpu")


def test_the_shipped_head_projects_and_ranks(with_head, paths):
    plain = Reranker.from_backbone(LITE0, crop_size=64, device="cpu", head=None)
    own, features, head = plain.embed(paths), with_head.embed(paths), load_file(SHIPPED)
    weight, bias = head["remap_local.weight"], head["remap_local.bias"]
    assert weight.shape == (128, 320, 1, 1) and SHIPPED.stat().st_size < 200_000
    assert torch.equal(own.descriptors, features.descriptors)
    torch.testing.assert_close(features.maps, F.conv2d(own.maps, weight, bias), rtol=1e-3, atol=1e-3)

    fusion = read_head(SHIPPED).fusion
    chamfer = Chamfer()
    best, *_ = with_head.rank(paths[0], paths[1:])
    pair = chamfer.encode_queries(features.maps[:1]), chamfer.encode_candidates(features.maps[1:][best.index][None])
    assert best.score == pytest.approx(fusion.chamfer * chamfer.score(*pair).item() + fusion.cosine * best.cosine, 1e-4)
    assert fusion.chamfer > 0 and fusion.logit == 0 and 0 < best.probability < 1
    said = f"ranks by {fusion.weights}, fitted on the Grocery Store Dataset, as the head lite0_head.safetensors)"
    assert said in repr(with_head) and "fitted" not in repr(plain)


def test_a_head_is_kept_with_its_network(with_head, tmp_path):
    with_head.save_pretrained(tmp_path / "model")
    again = Reranker.from_pretrained(tmp_path / "model", device="cpu")
    assert again.digest() == with_head.digest() and again.fusion == with_head.fusion
    head = read_head(SHIPPED)
    write_head(head._replace(path=tmp_path / "head.safetensors"))
    assert (tmp_path / "head.safetensors").read_bytes() == SHIPPED.read_bytes()


def test_a_head_is_for_the_weights_that_it_was_trained_on(tmp_path):
    network = make_backbone(LITE0, pretrained=True).network
    torch.save({name: 2 * part for name, part in network.state_dict().items()}, tmp_path / "other.pth")
    other = Reranker.from_backbone(LITE0, tmp_path / "other.pth", 64, "cpu")
    assert other.fusion is None and other.network.settings.num_local_features == 320
    with pytest.raises(InputError, match="trained on other weights of tf_efficientnet_lite0: give another, or head="):
        Reranker.from_backbone(LITE0, tmp_path / "other.pth", 64, "cpu", head=SHIPPED)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda tensors: tensors["remap_local.weight"].fill_(torch.nan), "NaN or infinite numbers in 1 tensors"),
        (lambda tensors: tensors["chamfer.b"].fill_(torch.inf), "NaN or infinite numbers in 1 tensors"),
        (lambda tensors: tensors.update({"remap_local.bias": torch.zeros(3)}), r"bias \(3,\), expected \(128,\)"),
        (lambda tensors: tensors.update({"remap_local.weight": torch.zeros(128, 8, 1, 1)}), r"expected \(128, 320, 1"),
        (lambda tensors: tensors.pop("remap_local.bias"), r"1 tensor missing \(remap_local.bias\)"),
        (lambda tensors: tensors.pop("remap_local.weight"), "is no head as tools/make_head.py writes it"),
    ],
)
def test_damaged_heads_are_refused(damage, message, tmp_path):
    head, path = read_head(SHIPPED), tmp_path / "head.safetensors"
    damage(head.tensors)
    write_head(head._replace(path=path))
    with pytest.raises(InputError, match=message) as error:
        Reranker.from_backbone(LITE0, crop_size=64, device="cpu", head=path)
    assert str(path) in str(error.value)


def test_files_that_are_no_heads(tmp_path):
    (tmp_path / "text").write_text("no head")
    save_file({"remap_local.weight": torch.zeros(4, 320, 1, 1)}, tmp_path / "tensors")
    for name in ("text", "tensors", "nowhere"):
        with pytest.raises(InputError, match=f"{name} is no head as tools/make_head.py writes it"):
            Reranker.from_backbone(LITE0, head=str(tmp_path / name))


def test_how_one_is_made(photos, paths, tmp_path, monkeypatch, capsys):
    file = tmp_path / "toy_head.safetensors"
    for name, value in (("VIEWS", 2), ("EPOCHS", 3), ("CROP_SIZE", 64)):
        monkeypatch.setattr(make_head, name, value)
    monkeypatch.setattr(sys, "argv", ["make_head", str(photos), "--trained-on", "toys", "--to", str(file)])
    make_head.main()
    printed = capsys.readouterr().out
    assert "fitted on 24 photos of 6 classes (toys, as the head toy_head.safetensors)" in printed
    assert f"{file}: {file.stat().st_size:,} bytes" in printed
    made = Reranker.from_backbone(LITE0, crop_size=64, device="cpu", head=file)
    assert made.embed(paths).maps.shape[1] == 128 and made.fusion == read_head(file).fusion
    start = 10.0
    assert read_head(file).tensors["chamfer.b"] != start
    again = Path(tmp_path / "again.safetensors")
    monkeypatch.setattr(sys, "argv", ["make_head", str(photos), "--trained-on", "toys", "--to", str(again)])
    make_head.main()
    assert all(torch.equal(part, read_head(again).tensors[name]) for name, part in read_head(file).tensors.items())
