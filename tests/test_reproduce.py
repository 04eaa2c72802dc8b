"""The whole proof, against a local server with a stand-in set of SOP's layout and weights that were never trained."""

import hashlib
import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from urllib.parse import urlparse

import numpy as np
import pytest
import torch

from benchmarks import reproduce
from models.ingredient import get_model
from sop.preparation.published import CHECKPOINTS, NEIGHBOURS, evaluation_commands
from tests import ROOT
from tests.conftest import TINY, draw_photo
from tests.faults import send, serving
from tests.reference import META
from tests.sop.preparation.test_published import hub

PRODUCTS = 12


def archive(folder) -> bytes:
    """Half of the products for training, four photos each."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as zipped:
        for name, products in (("train", range(PRODUCTS // 2)), ("test", range(PRODUCTS // 2, PRODUCTS))):
            lines = ["image_id class_id super_class_id path"]
            for product in products:
                for i in range(4):
                    path = f"toy_final/{product}_{i}.JPG"
                    draw_photo(folder / path, product, i)
                    zipped.write(folder / path, f"Stanford_Online_Products/{path}")
                    lines.append(f"{4 * product + i + 1} {product + 1} 1 {path}")
            zipped.writestr(f"Stanford_Online_Products/Ebay_{name}.txt", "\n".join(lines) + "\n")
    return content.getvalue()


def published_files() -> dict[str, bytes]:
    torch.manual_seed(0)
    settings: dict = META["default"] | TINY["model"]
    model, weights = get_model(PRODUCTS // 2, **settings), io.BytesIO()
    torch.save({"state": model.state_dict(), "optim": {}, "scheduler": {}}, weights)
    neighbours = np.array([[j for j in range(24) if j != i] for i in range(24)])
    files = {f"rrt_sop_ckpts/{name}": weights.getvalue() for name in CHECKPOINTS.names}
    return files | {f"rrt_sop_caches/{name}": pickle.dumps(neighbours, 3) for name in NEIGHBOURS.names}


def test_from_the_network_to_one_table(tmp_path):
    photos, of_hub = send(200, archive(tmp_path / "drawn"), {"ETag": '"1"'}), hub(published_files())

    def behave(request) -> None:
        (photos if urlparse(request.path).path == "/sop.zip" else of_hub)(request)

    model = [f"model.{name}={value}" for name, value in TINY["model"].items()]
    settings = ["cpu=True", "dataset.crop_size=64", "dataset.num_workers=0", "dataset.test_batch_size=8", *model]
    for folder in ("rrt_sop_ckpts", "rrt_sop_caches"):
        (tmp_path / folder).mkdir()
    with serving(behave) as server:
        words = [sys.executable, "-m", "benchmarks", "reproduce", "--prepare", f"sop_url={server.url}/sop.zip"]
        environment = os.environ | {"HF_ENDPOINT": server.url, "PYTHONPATH": str(ROOT)}
        outputs = []
        for _ in range(2):
            done = subprocess.run(
                [*words, "--evaluate", *settings], cwd=tmp_path, env=environment, capture_output=True, text=True
            )
            assert "Traceback" not in done.stderr, done.stderr
            outputs.append(done)
    first, again = outputs
    assert (first.returncode, again.returncode) == (1, 1)
    assert first.stdout.count("== eval_") == 3
    assert again.stdout.count("== eval_") == 0  # what is there is not done again
    table = first.stdout[first.stdout.index("\nevaluation ") :]
    assert table in again.stdout
    info = json.loads((tmp_path / "logs" / "eval_rerank_frozen_r50" / "1" / "info.json").read_text())
    measured = info["recall"]["1"]
    rows = [line.split() for line in table.splitlines()]
    (row,) = [row for row in rows if row[:2] == ["eval_rerank_frozen_r50", "R@1"]]
    assert row[1:5] == ["R@1", "81.80", f"{measured:.2f}", f"{measured - 81.8:+.2f}"]
    assert row[-1] == "cpu"
    assert table.count(" logit + cosine + chamfer ") == 2
    assert table.rstrip().endswith("A recall differs by more than 0.1")


@pytest.mark.parametrize(("shift", "code"), [(0.0, 0), (0.1, 0), (-0.1, 0), (0.11, 1), (float("nan"), 1)])
def test_the_exit_code(tmp_path, monkeypatch, capsys, shift, code):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reproduce, "command", lambda *words: None)
    for folder, (r1, r10, r100) in reproduce.PUBLISHED.items():
        recall = {"1": r1, "10": r10 + shift, "100": r100}
        info = {"recall": recall, "measures": {name: {"R@1": r1} for name in ("global", "logit + cosine + chamfer")}}
        _, config, sums = published_run(folder)
        record(tmp_path / folder / "1", config, info | {"md5": sums})
    assert reproduce.main([]) == code
    assert ("Every recall is the published one" in capsys.readouterr().out) == (code == 0)


def published_run(folder: str) -> tuple[list[str], dict, dict[str, str]]:
    """The command and settings of a published evaluation, and the MD5 sums of its files, which are made."""
    commands = evaluation_commands(CHECKPOINTS, "rrt_sop_ckpts", "rrt_sop_caches")
    (words,) = [words.split()[1:] for words in commands if folder in words]
    config = reproduce.config_of([word.strip("'") for word in words])
    sums = {}
    data = Path("data/Stanford_Online_Products")
    for path in [config["resume"], config.get("cache_nn_inds"), data / "train.txt", data / "test.txt"]:
        if path is not None:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_text(f"content of {path}")
            sums[str(path)] = hashlib.md5(f"content of {path}".encode()).hexdigest()
    return words, config, sums


def record(run, config: dict, info: dict) -> None:
    """A run folder of a completed run."""
    run.mkdir(parents=True)
    for name, content in (("run", {"status": "COMPLETED"}), ("config", config), ("info", info)):
        (run / f"{name}.json").write_text(json.dumps(content))


OTHERS = [
    {"fusion": "crossfit"},
    {"precision": "bf16"},
    {"seed": 1},
    {"dataset": {"crop_size": 64}},
    {"dataset": {"decode": "fast"}},
    {"model": {"arch": "resnet18"}},
    {"md5": {"data/Stanford_Online_Products/test.txt": "0" * 32}},
    {"md5": {"rrt_sop_ckpts/rrt_r50_sop_rerank_frozen.pt": "0" * 32}},
]


@pytest.mark.parametrize("other", OTHERS, ids=str)
def test_a_run_of_other_settings_or_files_is_not_the_published_evaluation(tmp_path, monkeypatch, other):
    monkeypatch.chdir(tmp_path)
    folder, recall = "logs/eval_rerank_frozen_r50", {"recall": {"1": 37.5, "10": 60.0, "100": 96.6}}
    words, config, sums = published_run(folder)
    assert reproduce.completed(folder, words) is None
    moved = {path.replace("data/", "/elsewhere/"): value for path, value in sums.items()}
    free = {"temp_dir": "elsewhere", "dataset": config["dataset"] | {"num_workers": 1, "data_path": "/elsewhere"}}
    record(tmp_path / folder / "1", config | free, recall | {"md5": moved})
    for name, value in other.items():
        config[name] = config[name] | value if isinstance(config.get(name), dict) else value
    record(tmp_path / folder / "2", config, recall | {"md5": sums | other.get("md5", {})})
    taken = reproduce.completed(folder, words)
    assert taken is not None and taken.folder.name == "1"
