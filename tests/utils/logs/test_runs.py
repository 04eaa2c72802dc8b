import errno
import json
import os
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from sacred.serializer import flatten

from tests.utils.logs.folders import START, config, entry, published_run, scalar, training_run, write
from utils.logs.runs import find_run_folders, read_run


def test_our_training_run(tmp_path):
    run = read_run(training_run(tmp_path / "1"))
    assert (run.experiment, run.script, run.status) == ("Rerank (train)", "experiment_rerank.py", "COMPLETED")
    assert run.best == {1: 81.0, 10: 92.0}
    assert run.best_epoch == 1
    assert run.last == {1: 80.0, 10: 93.0}
    assert run.duration == timedelta(days=1, hours=1, minutes=5, seconds=6)
    assert run.memory == 1.5
    assert run.losses == [(0.0, 4.0), (0.5, 2.0), (1.0, 1.0), (1.5, 0.5)]
    assert run.problems == []


def test_missing_artifacts(tmp_path):
    folder = training_run(tmp_path / "1")
    (folder / "a.pt").write_bytes(b"weights")
    (folder / "run.json").write_text(json.dumps(entry() | {"artifacts": ["a.pt", "b.pt"]}))
    run = read_run(folder)
    assert (run.status, run.best[1], run.problems) == ("COMPLETED", 81.0, ["artifact b.pt is missing"])


def test_the_last_of_equal_epochs_is_the_best(tmp_path):
    metrics = {"val.recall@1": scalar([0, 1, 2, 3], [50.0, 70.0, 70.0, 60.0])}
    run = read_run(write(tmp_path / "1", run=entry(), config=config(), metrics=metrics))
    assert (run.best, run.best_epoch, run.last) == ({1: 70.0}, 2, {1: 60.0})


def test_mean_average_precision_says_which_epoch_is_the_best(tmp_path):
    metrics = {"val.recall@1": scalar([0, 1, 2, 3], [50.0, 70.0, 90.0, 80.0])}
    metrics["val.mAP@R"] = scalar([0, 1, 2, 3], [20.0, 30.0, 25.0, 30.0])
    run = read_run(write(tmp_path / "1", run=entry(), config=config(), metrics=metrics))
    assert (run.best, run.best_epoch) == ({1: 80.0}, 3)


def test_evaluation(tmp_path):
    contents = {"run": entry(), "config": {"seed": 0}, "metrics": {}}
    run = read_run(write(tmp_path / "1", **contents, info={"recall": {"1": 80.7, "100": 96.6}}))
    assert run.best == run.last == {1: 80.7, 100: 96.6}
    assert run.best_epoch is None
    assert read_run(write(tmp_path / "2", **contents, cout="{1: 80.7, 10: 91.9} (K = …)")).best == {1: 80.7, 10: 91.9}


def test_published_run(tmp_path):
    run = read_run(published_run(tmp_path / "1"))
    assert run.best == {1: 85.65, 10: 92.95}
    assert run.best_epoch == 2
    assert run.last == {1: 85.61, 10: 92.97}
    assert run.validations[0] == {1: 83.34, 10: 92.68}
    assert sorted(run.validations) == [0, 1, 2, 3]


def test_logged_recalls_are_completed_by_printed_ones(tmp_path):
    folder = published_run(tmp_path / "1")
    (folder / "metrics.json").write_text(json.dumps({"val.recall@1": scalar([1, 2, 3], [84.5, 85.65, 85.6])}))
    assert read_run(folder).last == {1: 85.6, 10: 92.97}


def test_recorded_recalls_that_no_validation_reaches_have_no_epoch(tmp_path):
    contents = {"run": entry(), "config": config(), "info": {"recall": {"1": 90.0, "10": 95.0}}}
    run = read_run(write(tmp_path / "1", **contents, cout="Training   [000]: |\n{1: 80.0, 10: 97.0}"))
    assert (run.best, run.best_epoch, run.last) == ({1: 90.0, 10: 95.0}, None, {1: 80.0, 10: 97.0})


R1, R10, R100 = (np.float64(value) for value in (80.5, 93.25, 93.25))


@pytest.mark.parametrize(
    ("recall", "expected"),
    [
        ({1: R1, 10: R10, 100: R100}, {1: 80.5, 10: 93.25, 100: 93.25}),
        ({1: R1, 10: R10, 100: R10}, {1: 80.5, 10: 93.25}),  # a reference; cout.txt has the number
        ({"cosine": {1: R1, 10: R10}, "l2": {1: R1, 10: R10}}, {1: 80.5, 10: 93.25}),
        ({"l2": {1: R1, 10: R10}, "cosine": {1: R1, 10: R10}}, {1: 80.5, 10: 93.25}),
        ({"1": 80.5, "more": "text"}, {1: 80.5}),
        ("none", {}),
    ],
)
def test_recalls_as_jsonpickle_writes_them(tmp_path, recall, expected):
    info = flatten({"other": [R1 + 1], "recall": recall})
    assert "py/object" in json.dumps(info)
    assert read_run(write(tmp_path / "1", run=entry(), config={"seed": 0}, info=info)).best == expected


def test_status_and_duration_of_runs_without_an_end(tmp_path):
    now = datetime(2026, 1, 2, 5, 0, tzinfo=UTC)
    alive = write(
        tmp_path / "1", run=entry("RUNNING", start_time=START, heartbeat="2026-01-02T04:59:30"), config=config()
    )
    silent = write(tmp_path / "2", run=entry("RUNNING", start_time=START, heartbeat="2026-01-02T04:00:00.5"), config={})
    unborn = write(tmp_path / "3", run=entry("RUNNING", start_time=START, heartbeat=None), config=config())
    interrupted = training_run(tmp_path / "4", status="INTERRUPTED")
    runs = [read_run(folder, now) for folder in (alive, silent, unborn, interrupted)]
    assert [run.status for run in runs] == ["RUNNING", "STALE", "STALE", "INTERRUPTED"]
    assert [run.duration for run in runs[:3]] == [
        timedelta(hours=1, minutes=59, seconds=29.5),
        timedelta(hours=1),
        None,
    ]


def test_runs_are_found_in_natural_order(tmp_path):
    for name in ("10", "9", "a/2", "_sources"):
        (tmp_path / name).mkdir(parents=True)
    write(tmp_path / "a" / "1", run=entry())
    assert [str(path.relative_to(tmp_path)) for path in find_run_folders(tmp_path)] == ["9", "10", "a/1", "a/2"]


def test_folders_that_cannot_be_entered(tmp_path, monkeypatch):
    for name in ("1", "2"):
        training_run(tmp_path / name)

    def scandir(path, scandir=os.scandir):
        if str(path).endswith("/1"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert [path.name for path in find_run_folders(tmp_path)] == ["1", "2"]


def test_folders_without_runs(tmp_path):
    (tmp_path / "link").symlink_to(training_run(tmp_path / "elsewhere" / "1").parent)
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_text("")
    for name in ("file", "nowhere", "loop"):
        assert find_run_folders(tmp_path / name) == []
    assert find_run_folders(tmp_path) == [tmp_path / "elsewhere" / "1"]  # links are not followed


def test_a_run_that_has_printed_nothing(tmp_path):
    folder = training_run(tmp_path / "1", status="QUEUED")
    (folder / "cout.txt").unlink()
    run = read_run(folder)
    assert (run.status, run.best, run.problems) == ("QUEUED", {1: 81.0, 10: 92.0}, [])
