"""Trainings that are stopped anywhere and continued: to the last bit what they would have been."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import experiment_global
import experiment_rerank
from tests import ROOT
from tests.conftest import draw_photo
from tests.faults import fill_disk, names
from tests.fuzz import ABOUT, tiny_state
from tests.test_commands import flags
from utils import pickle_save
from utils.experiment.run_folder import CommandError
from utils.io.lock import exclusive_lock
from utils.training.loop import PendingScalars
from utils.training.resume import TrainingFiles


class Killed(BaseException):
    """What no code of ours catches."""


def command_of(kind: str, tiny, neighbours: Path, folder: Path, **changes):
    """A command and its settings: 2 epochs of 3 iterations."""
    data: dict = {"batch_size": 6, "num_iterations": 3}
    model: dict = {"dropout": 0.3, "ert_dropout": 0.3} if "micro" not in kind else {}
    settings: dict[str, dict]
    common = {"epochs": 2, "temp_dir": folder, "scheduler_tau": [1]} | changes
    if kind.startswith("global"):
        settings = {
            "global micro_batch": {"micro_batch": 2},
            "global bf16": {"precision": "bf16", "model": model | {"set_bn_eval": False}},
        }
        return experiment_global.ex, tiny(**common | settings[kind], dataset=data | {"sampler": "random_id"})
    data |= {"sampler": "triplet", "train_cache_nn_inds": str(neighbours / "train.pkl"), "batch_size": 24}
    settings = {
        "rerank": {"model": model},
        "rerank frozen_views": {"frozen_views": 2, "model": model | {"freeze_backbone": True}},
        "rerank fp16": {"precision": "fp16", "model": model},
    }
    return experiment_rerank.ex, tiny(
        **common | settings[kind], cache_nn_inds=str(neighbours / "test.pkl"), dataset=data
    )


def killed_after(iterations: int, monkeypatch) -> None:
    """The run dies in the iteration that follows so many."""
    really_add, done = PendingScalars.add, 0

    def add(scalars, *values):
        nonlocal done
        if done == iterations:
            raise Killed
        done += 1
        really_add(scalars, *values)

    monkeypatch.setattr(PendingScalars, "add", add)


def outcome(run, checkpoint: Path):
    scalars = {name: (series["steps"], series["values"]) for name, series in run.metrics.items()}
    return scalars, run.info["recall"], run.result, checkpoint.read_bytes()


KINDS = ["global micro_batch", "rerank frozen_views"]  # more in `make soak`


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_run_goes_on_as_if_it_had_not_been(tiny, observed, neighbours, tmp_path, monkeypatch, kind):
    ex, settings = command_of(kind, tiny, neighbours, tmp_path / "whole")
    whole = outcome(observed(ex, **settings), tmp_path / "whole" / "resnet18_sop.pt")
    length = len(whole[0]["train.loss"][0])
    settings |= {"temp_dir": str(tmp_path / "killed"), "save_minutes": 0}
    for survived in (length // 2 + 1, 1):  # killed again while continued
        with monkeypatch.context() as patch:
            killed_after(survived, patch)
            with pytest.raises(Killed):
                observed(ex, **settings)
        settings["continue_run"] = True
    run = observed(ex, **settings)
    assert outcome(run, tmp_path / "killed" / "resnet18_sop.pt") == whole
    assert "is continued after" in run.printed
    assert run.info["continues"] == str(run.folder.parent.parent / "sacred2" / "1")


def test_a_run_that_has_ended_takes_more_epochs(tiny, observed, neighbours, tmp_path):
    ex, settings = command_of("rerank", tiny, neighbours, tmp_path / "whole")
    whole = outcome(observed(ex, **settings), tmp_path / "whole" / "resnet18_sop.pt")
    settings |= {"temp_dir": str(tmp_path / "grown"), "epochs": 1}
    first = observed(ex, **settings)
    assert (
        outcome(observed(ex, **settings | {"continue_run": True}), tmp_path / "grown" / "resnet18_sop.pt")[:3]
        == (outcome(first, tmp_path / "grown" / "resnet18_sop.pt")[:3])
    )
    grown = observed(ex, **settings | {"epochs": 2, "continue_run": True})
    assert outcome(grown, tmp_path / "grown" / "resnet18_sop.pt") == whole
    assert grown.info["run_id"] == first.info["run_id"]
    with pytest.raises(CommandError, match=r"epochs=1, but 2 are trained already: give as many or more"):
        observed(ex, **settings | {"epochs": 1, "continue_run": True})


def test_what_an_unfinished_run_is_protected_from(tiny, observed, neighbours, tmp_path, monkeypatch):
    ex, settings = command_of("rerank", tiny, neighbours, tmp_path / "run")
    with monkeypatch.context() as patch:
        killed_after(4, patch)
        with pytest.raises(Killed):
            observed(ex, **settings)
    last = (tmp_path / "run" / "last.pt").read_bytes()
    with pytest.raises(CommandError, match=r"stopped after \d of 2 epochs: set continue_run=True to go on, or contin"):
        observed(ex, **settings)
    for changes, message in (
        ({"lr": 0.5}, r"lr=0\.5, not 0\.0001"),
        ({"model": settings["model"] | {"dropout": 0.1}}, r"model\.dropout=0\.1, not 0\.3"),
        ({"seed": 3}, r"seed=3, not \d+"),
    ):
        with pytest.raises(CommandError, match=rf"not the run that last\.pt is of: {message}"):
            observed(ex, **settings | changes, continue_run=True)
    moved = tmp_path / "moved.pkl"
    moved.write_bytes((neighbours / "test.pkl").read_bytes())
    observed(ex, **settings | {"cache_nn_inds": str(moved), "epochs": 3}, continue_run=True)
    (tmp_path / "run" / "last.pt").write_bytes(last)
    pickle_save(moved, np.array([[(i + j) % 20 for j in range(1, 9)] for i in range(20)]))
    with pytest.raises(CommandError, match=r"the split or neighbour files hold something else"):
        observed(ex, **settings | {"cache_nn_inds": str(moved)}, continue_run=True)
    run = observed(ex, **settings, continue_run=False)
    assert (tmp_path / "run" / "last.1.pt").read_bytes() == last
    assert run.metrics["train.loss"]["steps"][0] == 0


@pytest.mark.parametrize("content", [b"", b"no run", {"model": 3}, {}, [1, 2]])
def test_a_last_file_that_is_none(tiny, observed, neighbours, tmp_path, content):
    ex, settings = command_of("rerank", tiny, neighbours, tmp_path)
    if isinstance(content, bytes):
        (tmp_path / "last.pt").write_bytes(content)
    else:
        torch.save(content, tmp_path / "last.pt")
    for choice in (None, True):
        with pytest.raises(CommandError, match=r"last\.pt (holds no run to continue|could not be read|was refused)"):
            observed(ex, **settings, continue_run=choice)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_photo_that_vanishes(tiny, observed, neighbours, photos, tmp_path, workers):
    shutil.copytree(photos, tmp_path / "sop")
    changes = {"scheduler_tau": [1], "epochs": 4, "seed": 3}
    ex, settings = command_of("rerank", tiny, neighbours, tmp_path / "run", **changes)
    settings["dataset"] |= {"data_path": str(tmp_path / "sop"), "num_workers": workers}
    observed(ex, **settings | {"epochs": 1})
    (tmp_path / "sop" / "toy_final" / "3_1.JPG").unlink()
    with pytest.raises(CommandError, match=r"3_1\.JPG does not exist"):
        observed(ex, **settings | {"continue_run": True})
    last = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert sum(name == "train.loss" for name, _, _ in last["scalars"]) == 3 * last["epoch"] + last["iteration"]
    settings["dataset"]["skip_unreadable"] = True
    run = observed(ex, **settings | {"continue_run": True})
    assert "1 training photos could not be read" in run.printed
    assert run.info["unreadable"] == ["toy_final/3_1.JPG"]
    assert len(run.metrics["train.loss"]["values"]) == 12


def test_continuing_what_never_began(tiny, observed, neighbours, tmp_path):
    ex, settings = command_of("rerank", tiny, neighbours, tmp_path)
    run = observed(ex, **settings | {"epochs": 0, "continue_run": True})
    assert f"there is no last.pt in {tmp_path}: the run starts anew" in run.printed


def test_weights_that_the_run_would_replace(tiny, observed, neighbours, tmp_path):
    folder = tmp_path / "run"
    ex, settings = command_of("rerank", tiny, neighbours, folder, epochs=0)
    observed(ex, **settings)
    before = names(folder)
    with pytest.raises(CommandError, match=r"resume=\S+resnet18_sop\.pt is where this run writes: choose another temp"):
        observed(ex, **settings, resume=str(folder / "resnet18_sop.pt"))
    assert names(folder) == before


def start(settings, *options, **streams) -> subprocess.Popen:
    command = [sys.executable, "-u", "-m", "tests.narrow", "experiment_rerank.py", *options, "with", *flags(settings)]
    return subprocess.Popen(command, cwd=ROOT, **streams)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_ends_the_iteration_and_saves(tiny, neighbours, tmp_path, number):
    """As from a terminal or a launcher, all of its group."""
    _, settings = command_of("rerank", tiny, neighbours, tmp_path / "run", save_minutes=60, epochs=1000)
    settings["dataset"]["num_workers"] = 1
    log = tmp_path / "log"
    with (tmp_path / "errors").open("w+") as file:
        process = start(settings, "-F", log, stdout=subprocess.PIPE, stderr=file, text=True, start_new_session=True)
        assert process.stdout
        next(line for line in process.stdout if line.startswith("Validation [000]"))
        os.killpg(process.pid, number)
        process.communicate(timeout=60)
        file.seek(0)
        errors = file.read()
    assert process.returncode == 128 + number, errors[-1500:]
    assert "Traceback" not in errors
    assert json.loads((log / "1" / "run.json").read_text())["status"] == "INTERRUPTED"
    last = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    logged = sum(name == "train.loss" for name, _, _ in last["scalars"])
    assert logged == 3 * last["epoch"] + last["iteration"] > 0


def test_a_killed_training_leaves_no_worker_and_no_lock(tiny, neighbours, tmp_path, monkeypatch):
    _, settings = command_of("rerank", tiny, neighbours, tmp_path / "run", epochs=1000)
    settings["dataset"]["num_workers"] = 1
    monkeypatch.setenv("TMPDIR", tempfile.mkdtemp(dir="/tmp"))  # a socket's path may have 108 characters
    temporary = Path(os.environ["TMPDIR"])
    process = start(settings, "-u", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def children() -> list[str]:
        return Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()

    def wait_until(is_so) -> None:
        end = time.monotonic() + 60
        while not is_so():
            assert time.monotonic() < end
            time.sleep(0.02)

    wait_until(lambda: (tmp_path / "run" / "last.pt").exists() and any(temporary.glob("*/*")))
    workers = children()
    assert workers
    process.kill()
    process.wait()
    wait_until(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))
    assert names(temporary) == []
    temporary.rmdir()
    with exclusive_lock(tmp_path / "run" / ".lock", "", ""):
        pass


@pytest.mark.parametrize(
    ("trained", "is_foreign", "objective"),
    [
        (1, False, "published"),
        (2, False, "published"),
        (1, True, "published"),
        (2, True, "published"),
        (2, False, "joint"),
    ],
)
def test_a_run_whose_best_checkpoint_is_gone(tiny, observed, neighbours, tmp_path, trained, is_foreign, objective):
    """What is delivered is the best of what is there, and the recall that is noted is its own."""
    changes = {"epochs": trained, "lr": 1e-9, "objective": objective}
    ex, settings = command_of("rerank", tiny, neighbours, tmp_path / "run", **changes)
    measure, series = ("1", "val.recall@1") if objective == "published" else ("mAP@R", "val.mAP@R")
    first = observed(ex, **settings)
    checkpoint = tmp_path / "run" / "resnet18_sop.pt"
    checkpoint.unlink()
    if is_foreign:
        checkpoint.write_bytes(b"another run's")
    last = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    last["best"] = 99.0  # no later state reaches it
    torch.save(last, tmp_path / "run" / "last.pt")
    run = observed(ex, **settings | {"epochs": 2, "continue_run": True})
    assert f"{checkpoint}, the run's best state, is {'another file' if is_foreign else 'missing'}: best" in run.printed
    assert names(tmp_path / "run") == ["last.pt", *(["resnet18_sop.1.pt"] if is_foreign else []), "resnet18_sop.pt"]
    recalls = dict(zip(run.metrics[series]["steps"], run.metrics[series]["values"], strict=True))
    assert run.result == run.info["recall"][measure] == max(recalls[epoch] for epoch in range(trained, 3))
    assert first.metrics[series]["values"] == run.metrics[series]["values"][: trained + 1]
    last = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    state = torch.load(checkpoint, weights_only=True)["state"]
    assert all(torch.equal(tensor, last["model"][name]) for name, tensor in state.items()) or run.result > recalls[2]
    again = observed(ex, **settings | {"epochs": 2, "continue_run": True})
    assert "best starts anew" not in again.printed and again.result == run.result


def test_a_checkpoint_that_could_not_be_written_is_not_the_best(tmp_path, monkeypatch):
    state, files = tiny_state(), TrainingFiles(tmp_path / "c.pt", ABOUT)
    files.save_best(state)
    assert files.about["checkpoint"] == hashlib.md5((tmp_path / "c.pt").read_bytes()).hexdigest()
    with monkeypatch.context() as patch:
        fill_disk(patch, ".part", 100)
        files.save_best(state)
        assert files.about["checkpoint"] == ""


def test_other_photos_behind_the_same_lists(tiny, observed, neighbours, photos, tmp_path):
    ex, settings = command_of("rerank", tiny, neighbours, tmp_path / "run", epochs=0)
    observed(ex, **settings)
    shutil.copytree(photos, tmp_path / "copied", copy_function=shutil.copyfile)  # with other times
    settings["dataset"] |= {"data_path": str(tmp_path / "copied")}
    observed(ex, **settings, continue_run=True)
    for number in (0, 6):  # for training and for testing
        photo = tmp_path / "copied" / "toy_final" / f"{number}_0.JPG"
        content = photo.read_bytes()
        draw_photo(photo, number, 99)
        with pytest.raises(CommandError, match=r"not the run that last\.pt is of: 1 of 44 photos have another size"):
            observed(ex, **settings, continue_run=True)
        photo.write_bytes(content)
    last = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    del last["about"]["photos"], last["about"]["checkpoint"]  # as an older one
    torch.save(last, tmp_path / "run" / "last.pt")
    draw_photo(photo, 6, 99)
    assert "best starts anew" not in observed(ex, **settings, continue_run=True).printed
