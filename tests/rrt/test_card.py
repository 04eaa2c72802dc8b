"""The model card that is saved with a network, and what is uploaded to the hub."""

import re
from pathlib import Path

import pytest
from huggingface_hub import HfApi, ModelCard

from rrt import InputError, Reranker
from rrt.index import update
from rrt.pretrained import CARD, CONFIG, WEIGHTS
from tests.faults import send, serving
from tests.rrt.test_backbone import LITE0
from tests.rrt.test_own_weights import OWN, WITHOUT_LOGIT, with_weights
from utils.io import hub

FILES = {CARD, CONFIG, WEIGHTS}


@pytest.fixture
def own(content, tmp_path) -> Reranker:
    return Reranker.from_pretrained(with_weights(content, tmp_path / "own.pt", OWN), device="cpu")


def rows_of(card: ModelCard) -> dict[str, str]:
    return dict(re.findall(r"^\| (.*?) +\| (.*?) +\|$", card.text, re.MULTILINE))


def test_the_card_tells_what_is_known(own, tmp_path):
    own.save_pretrained(tmp_path / "saved")
    card = ModelCard.load(tmp_path / "saved" / CARD)
    assert card.data.to_dict() == {"library_name": "reranking-transformers", "tags": ["image-retrieval", "reranking"]}
    assert rows_of(card) == {
        "network": "resnet18",
        "---": "---",
        "photos": "64 x 64 pixels",
        "descriptors": "16 numbers, and local maps of 16 channels",
        "trained on": "photos of 6 classes",
        "ranks by": "logit + 3 * cosine + 2 * chamfer, 3 candidates",
        "weights fitted on": "val.txt, 300 queries of 60 classes",
        "R@1 there": "+1.50 points over the global ranking, 95 % interval -0.25 to +3.00",
        "mAP@R there": "+4.00 points over the global ranking, 95 % interval +2.00 to +6.00",
    }
    own.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / CARD).read_bytes() == (tmp_path / "saved" / CARD).read_bytes()


def test_the_unknown_is_left_out(reranker, content, tmp_path):
    reranker.save_pretrained(tmp_path)
    assert list(rows_of(ModelCard.load(tmp_path / CARD)))[2:] == ["photos", "descriptors", "trained on", "ranks by"]
    assert rows_of(ModelCard.load(tmp_path / CARD))["ranks by"] == "logit"
    path = with_weights(content, tmp_path / "chamfer.pt", WITHOUT_LOGIT, matcher_trained=False)
    Reranker.from_pretrained(path, device="cpu").save_pretrained(tmp_path)
    assert rows_of(ModelCard.load(tmp_path / CARD))["matcher"] == "never trained"
    Reranker.from_backbone(LITE0, crop_size=64, device="cpu").save_pretrained(tmp_path)
    rows = rows_of(ModelCard.load(tmp_path / CARD))
    assert "trained on" not in rows and rows["ranks by"] == "0.5 * cosine + chamfer, 100 candidates"
    assert rows["network"] == LITE0 and rows["licence of the backbone's published weights"] == "apache-2.0"


@pytest.mark.parametrize(
    ("licence", "header"),
    [
        ("cc-by-nc-4.0", {"license": "cc-by-nc-4.0"}),
        ("dinov3-license", {"license": "other", "license_name": "dinov3-license"}),
        ("unknown", {}),
    ],
)
def test_licences(own, tmp_path, monkeypatch, licence, header):
    monkeypatch.setattr(own.network.backbone, "licence", licence)
    own.save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / CARD)
    assert {name: value for name, value in card.data.to_dict().items() if "license" in name} == header
    row = "licence of the backbone's published weights"
    assert rows_of(card).get(row) == (licence if header else None)


def test_how_the_card_loads_it(own, paths, tmp_path, monkeypatch):
    own.save_pretrained(tmp_path / "FOLDER")
    monkeypatch.chdir(tmp_path)
    for name, path in zip(("query.jpg", "a.jpg", "b.jpg"), paths, strict=False):
        (tmp_path / name).symlink_to(path)
    (block,) = re.findall(r"^```python\n(.*?)^```$", (tmp_path / "FOLDER" / CARD).read_text(), re.MULTILINE | re.DOTALL)
    names: dict = {}
    exec(block, names)
    assert names["matches"] == own.rank(paths[0], paths[1:3])


def test_a_card_of_ones_own_is_kept(own, reranker, tmp_path):
    own.save_pretrained(tmp_path)
    reranker.save_pretrained(tmp_path)
    card = (tmp_path / CARD).read_text()
    assert rows_of(ModelCard(card))["ranks by"] == "logit"
    edited = card.replace("will again", "")
    (tmp_path / CARD).write_text(edited)
    own.save_pretrained(tmp_path)
    assert (tmp_path / CARD).read_text() == edited
    assert Reranker.from_pretrained(tmp_path, device="cpu").fusion == OWN


def test_an_index_may_be_updated_beside_the_card(own, paths, tmp_path):
    for photos in (2, 3):
        assert update(tmp_path / "index", paths[:photos], own).photos == photos
    assert {path.name for path in (tmp_path / "index" / "model").iterdir()} == FILES
    (tmp_path / "index" / CARD).touch()
    with pytest.raises(InputError, match="has files that are not an index's"):
        update(tmp_path / "index", paths, own)


@pytest.fixture
def calls(monkeypatch) -> list[tuple]:
    """What the hub was asked for: names, arguments, and the texts and names of uploaded files."""
    asked: list[tuple] = []

    def upload(api: HfApi, *, repo_id: str, folder_path: Path, revision: str | None):
        files = {path.name: path.read_bytes() for path in folder_path.iterdir()}
        asked.append(("upload", api.token, repo_id, revision, files))
        return type("Commit", (), {"commit_url": "https://hub/commit/1"})

    def noting(name):
        return lambda api, *names, **options: asked.append((name, api.token, *names, options))

    monkeypatch.setattr(hub, "ask", lambda endpoint: None)
    monkeypatch.setattr(HfApi, "create_repo", noting("repo"))
    monkeypatch.setattr(HfApi, "create_branch", noting("branch"))
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    return asked


def test_what_is_uploaded(own, calls, tmp_path):
    own.save_pretrained(tmp_path)
    assert own.push_to_hub("someone/tiny") == "https://hub/commit/1"
    assert calls[0] == ("repo", None, "someone/tiny", {"private": None, "exist_ok": True})
    ((*asked, files),) = calls[1:]
    assert asked == ["upload", None, "someone/tiny", None] and files.keys() == FILES
    assert all(files[name] == (tmp_path / name).read_bytes() for name in (CONFIG, WEIGHTS))
    assert b'from_pretrained("someone/tiny")' in files[CARD]
    calls.clear()
    own.push_to_hub("someone/tiny", private=True, token="secret", revision="v2")
    assert calls[0] == ("repo", "secret", "someone/tiny", {"private": True, "exist_ok": True})
    assert calls[1] == ("branch", "secret", "someone/tiny", {"branch": "v2", "exist_ok": True})
    assert calls[2][:4] == ("upload", "secret", "someone/tiny", "v2")
    for name in ("tiny", "a/b/c", None):
        with pytest.raises(InputError, match=f"repo_id={name!r}: give 'OWNER/NAME'"):
            own.push_to_hub(name)


def test_a_hub_that_refuses_or_is_away(own, monkeypatch):
    def refuse(request):
        request.rfile.read(int(request.headers.get("Content-Length", 0)))
        send(401, b'{"error": "Invalid username or password."}', {})(request)

    monkeypatch.setenv("NO_PROXY", "*")
    with serving(refuse) as server:
        server.http.RequestHandlerClass.do_POST = server.http.RequestHandlerClass.do_GET
        monkeypatch.setattr(hub.constants, "ENDPOINT", server.url)
        with pytest.raises(InputError) as raised:
            own.push_to_hub("someone/tiny", token="hf_secret")
        assert "/api/repos/create" in dict(server.requests)
    start = f"someone/tiny could not be uploaded to {server.url} ("
    assert str(raised.value).startswith(start) and "401" in str(raised.value)
    assert str(raised.value).endswith("): give token=, log in with `hf auth login`, or try again later")
    assert "\n" not in str(raised.value) and "hf_secret" not in str(raised.value)
    with pytest.raises(InputError, match=re.escape(start) + r".*refused"):
        own.push_to_hub("someone/tiny")
