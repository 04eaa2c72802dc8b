import json
import zipfile
from functools import partial
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest
from huggingface_hub import HfApi

import sop.preparation.published
from sop.preparation.published import CHECKPOINTS, NEIGHBOURS, evaluation_commands, fetch_published
from tests.faults import fill_disk, names, send, serving, without_pauses
from utils.errors import InputError

REPOSITORY = "fwtan/rrt_sop_data"
BARE = {f"rrt_sop_ckpts/{name}": name.encode() * 50 for name in CHECKPOINTS.names}
OTHERS = {".gitattributes": b"x", "rrt_gldv2_ckpts/r50.pt": b"x", "rrt_sop_ckpts_old/rrt_r50_sop_global.pt": b"x"}


def hub(files: dict[str, bytes], repository: str = REPOSITORY):
    """Answers as a hub that has the files of one repository."""

    def behave(request) -> None:
        path = unquote(urlparse(request.path).path)
        commit = {"X-Repo-Commit": "a" * 40}
        if path == f"/api/models/{repository}/tree/main":
            listing = [{"type": "file", "path": p, "size": len(c), "oid": "b" * 40} for p, c in files.items()]
            listing.append({"type": "directory", "path": "rrt_sop_ckpts/folder", "oid": "c" * 40})
            return send(200, json.dumps(listing).encode(), {"Content-Type": "application/json"})(request)
        name = path.removeprefix(f"/{repository}/resolve/main/")
        if name not in files:
            return send(404, b"", {"X-Error-Code": "EntryNotFound" if repository in path else "RepoNotFound"})(request)
        return send(200, files[name], commit | {"ETag": f'"{abs(hash(name)):040x}"'})(request)

    return behave


def zipped(path: Path, files: dict[str, bytes]) -> bytes:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as content:
        for name, text in files.items():
            content.writestr(name, text)
    return path.read_bytes()


@pytest.fixture
def served(monkeypatch):
    """A hub that has the files it is given, and no pauses between attempts."""
    without_pauses(monkeypatch)
    with serving() as server:
        monkeypatch.setattr(sop.preparation.published, "HfApi", partial(HfApi, endpoint=server.url))

        def serve(files):
            server.script = [hub(files)]
            server.requests.clear()
            return server

        yield serve


def fetched(server) -> list[str]:
    """The files whose content was asked for."""
    return sorted({path.rpartition("/")[2] for path, _ in server.requests if "/resolve/" in path})


def test_bare_files_are_fetched_once(served, tmp_path, capsys):
    target = tmp_path / "checkpoints"
    server = served(BARE | OTHERS)
    fetch_published(CHECKPOINTS, REPOSITORY, target)
    assert {name: (target / name).read_bytes() for name in names(target)} == {
        Path(name).name: content for name, content in BARE.items()
    }
    assert fetched(server) == sorted(CHECKPOINTS.names)
    server.requests.clear()
    fetch_published(CHECKPOINTS, REPOSITORY, target)
    assert server.requests == [] and f"all in {target} already" in capsys.readouterr().out


def test_only_what_is_missing_is_fetched(served, tmp_path):
    (tmp_path / "rrt_r50_sop_global.pt").write_bytes(b"mine")
    (tmp_path / ".downloading").mkdir()
    (tmp_path / ".downloading" / "rrt_r50_sop_rerank_frozen.pt").write_bytes(b"half, of a killed call")
    server = served(BARE)
    fetch_published(CHECKPOINTS, REPOSITORY, tmp_path)
    assert (tmp_path / "rrt_r50_sop_global.pt").read_bytes() == b"mine"
    assert fetched(server) == ["rrt_r50_sop_rerank_finetune.pt", "rrt_r50_sop_rerank_frozen.pt"]
    assert names(tmp_path) == sorted(CHECKPOINTS.names)
    server = served(BARE)
    fetch_published(CHECKPOINTS._replace(names=CHECKPOINTS.names[-1:]), REPOSITORY, tmp_path / "one")
    assert fetched(server) == names(tmp_path / "one") == [CHECKPOINTS.names[-1]]


@pytest.mark.parametrize("top", ["", "rrt_sop_caches/"])
def test_zipped_files_are_unpacked(served, tmp_path, top):
    inside = {top + name: name.encode() for name in NEIGHBOURS.names} | {f"__MACOSX/{top}._x.pkl": b"x"}
    archive = zipped(tmp_path / "x.zip", inside)
    target = tmp_path / "caches"
    target.mkdir()
    (target / NEIGHBOURS.names[1]).write_bytes(b"mine")
    served({"rrt_sop_caches/all.zip": archive})
    fetch_published(NEIGHBOURS, REPOSITORY, target)
    assert {name: (target / name).read_bytes() for name in names(target)} == {
        NEIGHBOURS.names[0]: NEIGHBOURS.names[0].encode(),
        NEIGHBOURS.names[1]: b"mine",
    }


def test_a_zip_that_is_hostile_or_damaged_leaves_nothing(served, tmp_path):
    whole = zipped(tmp_path / "x.zip", {name: name.encode() * 100 for name in NEIGHBOURS.names})
    hostile = zipped(tmp_path / "x.zip", {"../rrt_r50_sop_nn_inds_test.pkl": b"x"})
    for archive, told in (
        (hostile, r"was refused: its member '.*' would be written outside"),
        (whole.replace(whole[60:70], b"\0" * 10), r"is damaged \("),
    ):
        served({"rrt_sop_caches/all.zip": archive})
        with pytest.raises(InputError, match=rf"^archive .*all.zip {told}"):
            fetch_published(NEIGHBOURS, REPOSITORY, tmp_path / "caches")
        assert names(tmp_path / "caches") == [] and names(tmp_path) == ["x.zip"]


def test_a_hostile_path_in_the_list_is_passed_over(served, tmp_path):
    served({"rrt_sop_ckpts/../../evil.pt": b"x"} | BARE)
    fetch_published(CHECKPOINTS, REPOSITORY, tmp_path / "a" / "b" / "checkpoints")
    assert names(tmp_path / "a" / "b" / "checkpoints") == sorted(CHECKPOINTS.names)
    assert not list(tmp_path.rglob("evil.pt"))


def test_a_repository_without_the_files(served, tmp_path):
    server = served(OTHERS)
    with pytest.raises(InputError) as raised:
        fetch_published(NEIGHBOURS, REPOSITORY, tmp_path)
    wanted = "rrt_r50_sop_nn_inds_test.pkl, rrt_r50_sop_nn_inds_train.pkl"
    assert str(raised.value) == (
        f"{REPOSITORY} does not have {wanted} in rrt_sop_caches/: fetch {wanted} by hand from "
        f"{server.url}/{REPOSITORY}/tree/main/rrt_sop_caches"
    )


@pytest.mark.parametrize("status", [404, 401, 503, "refused"])
def test_a_hub_that_refuses(served, tmp_path, monkeypatch, status):
    server = served({})
    if status == "refused":
        with serving() as server:
            monkeypatch.setattr(sop.preparation.published, "HfApi", partial(HfApi, endpoint=server.url))
    else:
        server.script = [send(status, b"", {})]
    by_hand = (
        rf"try again later, or fetch {', '.join(CHECKPOINTS.names)} by hand from "
        rf"{server.url}/{REPOSITORY}/tree/main/rrt_sop_ckpts into {tmp_path}$"
    )
    with pytest.raises(InputError, match=rf"^{REPOSITORY} could not be fetched \(.*{status}.*\): {by_hand}") as raised:
        fetch_published(CHECKPOINTS, REPOSITORY, tmp_path)
    assert "\n" not in str(raised.value) and names(tmp_path) == []


def test_a_connection_that_breaks_keeps_the_files_before_it(served, tmp_path):
    server = served(BARE)
    whole, behave = hub(BARE), send(200, b"x" * 100, {"X-Repo-Commit": "a" * 40, "ETag": '"1"'}, drop_after=50)
    server.script = [lambda request: (behave if "frozen" in request.path else whole)(request)]
    with pytest.raises(InputError, match=r"could not be fetched \("):
        fetch_published(CHECKPOINTS, REPOSITORY, tmp_path)
    assert names(tmp_path) == ["rrt_r50_sop_global.pt"]
    server = served(BARE)
    fetch_published(CHECKPOINTS, REPOSITORY, tmp_path)
    assert names(tmp_path) == sorted(CHECKPOINTS.names) and "rrt_r50_sop_global.pt" not in fetched(server)


def test_a_full_disk(served, tmp_path, monkeypatch):
    archive = zipped(tmp_path / "x.zip", {name: name.encode() * 100 for name in NEIGHBOURS.names})
    served({"rrt_sop_caches/all.zip": archive})
    fill_disk(monkeypatch, "train.pkl.part", 10)
    with pytest.raises(InputError, match=r"^\S*train.pkl could not be written: No space left"):
        fetch_published(NEIGHBOURS, REPOSITORY, tmp_path / "caches")
    assert names(tmp_path / "caches") == [NEIGHBOURS.names[0]]


def test_the_commands_are_the_documented_ones():
    frozen, finetune = (
        f"python eval_rerank.py -F logs/eval_rerank_{kind}_r50 with temp_dir=logs/eval_rerank_{kind}_r50 "
        f"resume=rrt_sop_ckpts/rrt_r50_sop_rerank_{kind}.pt dataset.sop_rerank model.resnet50 "
        "cache_nn_inds=rrt_sop_caches/rrt_r50_sop_nn_inds_test.pkl"
        for kind in ("frozen", "finetune")
    )
    assert evaluation_commands(NEIGHBOURS, "rrt_sop_ckpts", "rrt_sop_caches") == [frozen, finetune]
    assert evaluation_commands(CHECKPOINTS, "rrt_sop_ckpts", "rrt_sop_caches") == [
        "python eval_global.py -F logs/eval_global_r50 with temp_dir=logs/eval_global_r50 "
        "resume=rrt_sop_ckpts/rrt_r50_sop_global.pt dataset.sop_global model.resnet50",
        frozen,
        finetune,
    ]
    assert "resume=/a/rrt_r50_sop_global.pt" in evaluation_commands(CHECKPOINTS, "/a/", "/b")[0]
