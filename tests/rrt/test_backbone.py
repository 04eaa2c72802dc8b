"""A pretrained backbone without any training: EfficientNet-lite0, whose weights a package brings along."""

import json
import re

import pytest
import torch
import torch.nn.functional as F

from models.backbones import make_backbone
from rrt import InputError, Reranker
from rrt.__main__ import main
from utils.retrieval.chamfer import Chamfer

LITE0 = "tf_efficientnet_lite0"


@pytest.fixture(scope="module")
def lite0() -> Reranker:
    return Reranker.from_backbone(LITE0, crop_size=64, device="cpu", head=None)


def test_features_and_ranking(lite0, paths):
    features = lite0.embed(paths)
    backbone = make_backbone(LITE0, pretrained=True).eval()
    pixels = torch.stack([lite0.pixels(path) for path in paths]).float() / 255 * 2 - 1
    with torch.no_grad():
        maps = backbone(pixels)
    torch.testing.assert_close(features.maps, maps, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(features.descriptors, F.normalize(maps.mean((2, 3)), dim=1), rtol=1e-3, atol=1e-4)
    chamfer = Chamfer()
    best, *_ = matches = lite0.rank(paths[0], paths[1:])
    pair = chamfer.score(chamfer.encode_queries(maps[:1]), chamfer.encode_candidates(maps[1:][best.index][None]))
    assert best.logit is None and best.probability is None
    assert best.score == pytest.approx(pair.item() + 0.5 * best.cosine, abs=1e-3)
    assert [match.score for match in matches] == sorted((match.score for match in matches), reverse=True)
    with pytest.raises(InputError, match="fusion='logit': the matcher was never trained, leave fusion out"):
        lite0.rank(paths[0], paths, fusion="logit")


def test_there_and_back(lite0, paths, tmp_path, monkeypatch):
    lite0.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["licence"], config["matcher_trained"]) == ("apache-2.0", False)
    monkeypatch.setattr("models.backbones.timm.WHEELS", {})
    again = Reranker.from_pretrained(tmp_path, device="cpu")
    assert again.digest() == lite0.digest() and again.rank(paths[0], paths) == lite0.rank(paths[0], paths)
    assert "0.5 * cosine + chamfer" in repr(again)


def test_its_own_crop_size_where_it_takes_no_other(tmp_path):
    backbone = make_backbone("test_vit")
    torch.save(backbone.network.state_dict(), tmp_path / "weights.pth")
    made = [Reranker.from_backbone("test_vit", tmp_path / "weights.pth", size, device="cpu") for size in (None, 32)]
    assert [reranker.crop_size for reranker in made] == [224, 32]
    with pytest.raises(InputError, match="crop_size=40 does not fit test_vit: take 32 or 48 or 160"):
        Reranker.from_backbone("test_vit", tmp_path / "weights.pth", 40, device="cpu")


def test_index_search_and_compare(paths, tmp_path, capsys, monkeypatch):
    model, index = ["--backbone", LITE0, "--crop-size", "64"], str(tmp_path / "index")
    photos = list(map(str, paths))
    assert main(["index", *photos, "--to", index, *model]) == 0
    indexed = capsys.readouterr().out
    ranking = re.search(r"; ranks by (.+ \* cosine \+ chamfer, \d+ candidates, fitted on the Grocery .+)\)\n", indexed)
    assert ranking is not None and "has 7 photos: 7 added" in indexed
    assert main(["index", *photos, "--to", index, *model]) == 0
    assert "has 7 photos: 0 added, 0 embedded again" in capsys.readouterr().out
    assert main(["search", index, photos[0], "--top", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ranking"] == f"reranked by {ranking[1]}"
    assert found["answers"][0]["found"][0]["photo"] == photos[0]
    assert main(["compare", photos[0], photos[1], *model]) == 0
    verdict = r"same product: [01]\.\d\d, cosine 0\.\d{3}\n(no )?match, at a false match rate of 1 % among candidates\n"
    assert re.fullmatch(verdict, capsys.readouterr().out)
    monkeypatch.setattr("rrt.heads.FILES", {})
    assert main(["compare", photos[0], photos[1], *model]) == 0
    printed = re.fullmatch(r"score (\d\.\d{3}), cosine (0\.\d{3})\n", capsys.readouterr().out)
    assert printed is not None and 0.5 * float(printed[2]) < float(printed[1]) < 1.5
    for wrong, message in (
        (["--backbone", LITE0, "--model", "published"], "leave --model and --setting out"),
        (["--weights", "weights.pth", "--model", "published"], "--weights are a --backbone's"),
        (["--backbone", "tf_efficientnet_lite9"], "unknown: give a ResNet of torchvision's, or a name of timm's, such"),
    ):
        assert main(["compare", photos[0], photos[1], *wrong]) == 1
        assert message in capsys.readouterr().err
