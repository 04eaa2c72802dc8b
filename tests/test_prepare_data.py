import errno
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from prepare_data import ex
from sop.preparation.archive import SOP_MD5, SOP_URL
from sop.preparation.published import CHECKPOINTS, NEIGHBOURS
from sop.splits import read_split
from tests import ROOT
from tests.faults import names, send, serve, serving, without_pauses
from tests.sop.preparation.test_published import BARE, hub
from utils.experiment.run_folder import CommandError
from utils.io.lock import exclusive_lock

HEADER = "image_id class_id super_class_id path\n"
TRAIN = HEADER + "".join(f"{i + 1} {i // 4 + 1} 1 toy_final/{i // 4}_{i % 4}.JPG\n" for i in range(24))
TEST = HEADER + "".join(f"{i + 1} {i // 4 + 1} 1 toy_final/{i // 4}_{i % 4}.JPG\n" for i in range(24, 44))


@pytest.fixture(scope="session")
def archive(photos) -> bytes:
    """SOP's archive made of the photos of `conftest`."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as content:
        content.writestr("Stanford_Online_Products/Ebay_train.txt", TRAIN)
        content.writestr("Stanford_Online_Products/Ebay_test.txt", TEST)
        for path in sorted(photos.glob("toy_final/*")):
            content.write(path, f"Stanford_Online_Products/{path.relative_to(photos)}")
    return file.getvalue()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    without_pauses(monkeypatch)


@pytest.fixture
def prepare(tmp_path):
    """Run a command of the script on `tmp_path/data/sop`."""

    def run(url="http://127.0.0.1:1/SOP.zip", command=None, **changes):
        return ex.run(command, config_updates={"sop_dir": str(tmp_path / "data" / "sop"), "sop_url": url} | changes)

    return run


def test_the_config():
    config = ex.run("print_config").config
    expected = {
        "sop_dir": "data/Stanford_Online_Products",
        "sop_url": SOP_URL,
        "sop_md5": SOP_MD5,
        "train_file": "train.txt",
        "test_file": "test.txt",
        "hub_repository": "fwtan/rrt_sop_data",
        "checkpoint_dir": "rrt_sop_ckpts",
        "neighbour_dir": "rrt_sop_caches",
    }
    assert expected.items() <= config.items()
    assert ex.path == "Prepare SOP"
    elsewhere = ex.run("print_config", config_updates={"sop_url": "http://example.org/SOP.zip"}).config
    assert elsewhere["sop_md5"] is None


def test_the_dataset_is_fetched_unpacked_and_split(prepare, archive, photos, tmp_path):
    data = tmp_path / "data"
    with serving(serve(archive, drop_after=100_000), serve(archive)) as server:
        prepare(f"{server.url}/SOP.zip", sop_md5=hashlib.md5(archive).hexdigest())
        assert names(data) == ["SOP.zip", "sop"] and (data / "SOP.zip").read_bytes() == archive
        assert names(data / "sop") == ["Ebay_test.txt", "Ebay_train.txt", "test.txt", "toy_final", "train.txt"]
        for name in ("train.txt", "test.txt"):
            assert (data / "sop" / name).read_bytes() == (photos / name).read_bytes()
        server.requests.clear()

        prepare(f"{server.url}/SOP.zip", train_file="learn.txt")  # nothing is fetched where the folder is there
        shutil.rmtree(data / "sop")
        prepare(f"{server.url}/SOP.zip")  # nor where the archive is
        assert server.requests == []
    assert (data / "sop" / "train.txt").read_bytes() == (photos / "train.txt").read_bytes()


@pytest.mark.parametrize(
    ("changes", "message", "left"),
    [
        ({"sop_md5": SOP_MD5}, rf"has the MD5 \w+, expected {SOP_MD5}", []),
        ({}, r"SOP.zip is damaged \(File is not a zip file\): delete it", ["SOP.zip"]),
    ],
)
def test_another_file_ends_in_one_message(prepare, tmp_path, changes, message, left):
    with serving(serve(b"PK")) as server, pytest.raises(CommandError, match=message) as raised:
        prepare(f"{server.url}/SOP.zip", **changes)
    assert "\n" not in str(raised.value) and names(tmp_path / "data") == left


def test_a_folder_that_is_not_sops_is_left_alone(prepare, tmp_path):
    folder = tmp_path / "data" / "sop"
    folder.mkdir(parents=True)
    (folder / "train.txt").write_text("mine")
    with pytest.raises(CommandError, match=r"Ebay_train.txt does not exist: .*sop is not SOP's folder; choose another"):
        prepare()
    (folder / "Ebay_train.txt").write_text(TRAIN)
    (folder / "Ebay_test.txt").write_text(TEST + "45 11 1\n")
    with pytest.raises(CommandError, match=r"Ebay_test.txt, line 22: expected .* found '45 11 1'"):
        prepare()
    assert names(folder) == ["Ebay_test.txt", "Ebay_train.txt", "train.txt"] and names(tmp_path / "data") == ["sop"]
    assert (folder / "train.txt").read_text() == "mine"


def test_verify(prepare, archive, tmp_path, capsys):
    with pytest.raises(CommandError, match=r"data/sop does not exist: run prepare_data.py"):
        prepare(command="verify")
    (tmp_path / "SOP.zip").write_bytes(archive)
    (tmp_path / "data" / "sop").mkdir(parents=True)  # an empty one is filled
    prepare((tmp_path / "SOP.zip").as_uri())
    prepare(command="verify")
    assert "44 images, 1 groups of identical files (4 files)" in capsys.readouterr().out
    (tmp_path / "data" / "sop" / "toy_final" / "0_0.JPG").unlink()
    with pytest.raises(CommandError, match="of 44 images 1 are missing and 0 unreadable"):
        prepare(command="verify")
    assert "0_0.JPG does not exist" in capsys.readouterr().out


def command_line(*arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(ROOT / "prepare_data.py"), *arguments],
        cwd=folder,
        env=os.environ | {"NO_PROXY": "*"} | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_command_line(archive, photos, tmp_path):
    (tmp_path / "data").mkdir()
    with serving(serve(archive)) as server:
        done = command_line("-F", "logs", "with", "sop_dir=data/sop", f"sop_url={server.url}/SOP.zip", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "data/sop/train.txt: 24 images" in done.stdout and "data/sop/test.txt: 20 images" in done.stdout
    assert (tmp_path / "data" / "sop" / "test.txt").read_bytes() == (photos / "test.txt").read_bytes()
    assert json.loads((tmp_path / "logs" / "1" / "config.json").read_text())["sop_dir"] == "data/sop"
    with serving(send(404, b"", {})) as server:
        failed = command_line("with", f"sop_url={server.url}/SOP.zip", folder=tmp_path / "logs")
    assert failed.returncode == 1 and "Traceback" not in failed.stderr
    assert failed.stderr.strip().endswith("SOP.zip: the server answered 404 Not Found: check the address")


def test_the_published_files_from_the_command_line(tmp_path):
    files = BARE | {f"rrt_sop_caches/{name}": name.encode() for name in NEIGHBOURS.names}
    with serving(hub(files)) as server:
        fetched = command_line("checkpoints", folder=tmp_path, HF_ENDPOINT=server.url)
        assert fetched.returncode == 0, fetched.stderr
        assert names(tmp_path / "rrt_sop_ckpts") == sorted(CHECKPOINTS.names)
        assert (
            "python eval_global.py -F logs/eval_global_r50 with temp_dir=logs/eval_global_r50 resume=" in fetched.stdout
        )
        fetched = command_line("neighbours", "with", "neighbour_dir=nn", folder=tmp_path, HF_ENDPOINT=server.url)
    assert fetched.returncode == 0, fetched.stderr
    assert names(tmp_path / "nn") == sorted(NEIGHBOURS.names)
    assert "cache_nn_inds=nn/rrt_r50_sop_nn_inds_test.pkl\n" in fetched.stdout


def test_a_demo_set_with_classes_held_out(tmp_path):
    demo = {"demo_dir": str(tmp_path / "demo"), "demo_products": 4, "val_classes": 1}
    ex.run("demo", config_updates=demo)
    found = {name: read_split(tmp_path / "demo", f"{name}.txt").classes for name in ("train", "val", "test")}
    assert found == {"train": [0] * 6, "val": [1] * 6, "test": [2] * 6 + [3] * 6}


def test_settings_that_make_no_sense_are_refused_before_anything_is_done(prepare, archive, tmp_path):
    demo = {"demo_dir": str(tmp_path / "demo"), "demo_products": 4}
    for command, changes, message in [
        (None, {"val_classes": "x"}, "val_classes='x': give a whole number from 0"),
        (None, {"train_file": "Ebay_train.txt"}, "train_file='Ebay_train.txt': give a path below"),
        (None, {"test_file": "train.txt"}, "test_file='train.txt' cannot be used: train_file is the same file"),
        (None, {"val_file": "train.txt", "val_classes": 1}, "val_file='train.txt' cannot be used: train_file is the"),
        (None, {"sop_dir": 5}, "sop_dir=5: give a folder's path that ends in the folder's name"),
        (None, {"sop_url": ["x"]}, r"sop_url=\['x'\]: give an address"),
        ("verify", {"test_file": "../test.txt"}, "test_file='../test.txt': give a path below"),
        ("checkpoints", {"hub_repository": "x"}, "hub_repository='x': give owner/name"),
        ("neighbours", {"neighbour_dir": ""}, "neighbour_dir='': give a folder's path"),
        ("demo", demo | {"demo_products": -1}, "demo_products=-1: give a whole number from 2 to 1,000"),
        ("demo", demo | {"val_classes": 2}, "val_classes=2: give a whole number from 0 to 1$"),
        ("demo", demo | {"train_file": "test.txt"}, "test_file='test.txt' cannot be used: train_file is the same file"),
    ]:
        with serving(serve(archive)) as server, pytest.raises(CommandError, match=rf"^{message}"):
            prepare(command=command, **{"sop_url": f"{server.url}/SOP.zip"} | changes)
        assert server.requests == []
    assert names(tmp_path) == []


def test_a_second_process_is_refused(prepare, archive, tmp_path):
    (tmp_path / "SOP.zip").write_bytes(archive)
    url, folder = (tmp_path / "SOP.zip").as_uri(), tmp_path / "data" / "sop"
    stores = {"checkpoint_dir": str(tmp_path / "a"), "demo_dir": str(tmp_path / "data" / "sop"), "demo_products": 2}
    for lock, command in [
        (tmp_path / "data" / ".SOP.zip.lock", None),
        (tmp_path / "data" / ".sop.lock", None),
        (tmp_path / "data" / ".sop.lock", "demo"),
        (tmp_path / "a" / ".lock", "checkpoints"),
    ]:
        refused = rf"(SOP.zip|sop|a) is being written by process {os.getpid()} on .*: run the command again later"
        with exclusive_lock(lock, "it", ""), pytest.raises(CommandError, match=refused):
            prepare(url, command, **stores)
        assert not folder.exists()
    prepare(url)
    with (
        exclusive_lock(folder / ".lock", "it", ""),
        pytest.raises(CommandError, match=r"set of split files in .*/sop is bei"),
    ):
        prepare(url, train_file="learn.txt")
    assert names(folder) == ["Ebay_test.txt", "Ebay_train.txt", "test.txt", "toy_final", "train.txt"]


def test_split_files_of_a_folder_that_is_read_only(prepare, archive, photos, tmp_path, monkeypatch):
    (tmp_path / "SOP.zip").write_bytes(archive)
    url, folder = (tmp_path / "SOP.zip").as_uri(), tmp_path / "data" / "sop"
    prepare(url)
    before = {path: path.stat() for path in folder.rglob("*")}
    really_open = Path.open

    def refuse(path, mode="r", *args, **kwargs):
        if path.is_relative_to(folder) and not mode.startswith("r"):
            raise OSError(errno.EROFS, "Read-only file system")
        return really_open(path, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(CommandError, match=r"/sop cannot be written to: Read-only file system; choose another folder$"):
        prepare(url)
    lists = {f"{name}_file": str(tmp_path / "lists" / f"{name}.txt") for name in ("train", "test", "val")}
    prepare(url, **lists)
    assert {path: path.stat() for path in folder.rglob("*")} == before
    assert names(tmp_path / "lists") == ["test.txt", "train.txt"]
    for name in ("train", "test"):
        assert read_split(folder, lists[f"{name}_file"]) == read_split(photos, f"{name}.txt")
    prepare(url, "verify", **lists)
    refused = r"set of split files in .*/lists is being written by process"
    with exclusive_lock(tmp_path / "lists" / ".lock", "it", ""), pytest.raises(CommandError, match=refused):
        prepare(url, **lists)


def test_it_starts_without_torch_and_faiss():
    code = "import sys, prepare_data; print({'torch', 'faiss'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "set()\n"
