"""Run folders written here in the forms found in the wild, and what is read of them."""

import csv
import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from sacred.serializer import flatten

from utils.errors import InputError
from utils.logs import as_csv, as_tables, group_runs, main, markdown_table, text_table
from utils.plots import epoch_means, plot_runs
from utils.runs import find_run_folders, read_run

START = "2026-01-02T03:00:00.500000"
STOP = "2026-01-03T04:05:06.500000"


def write(folder: Path, **contents) -> Path:
    """A run folder with these files, by their stems: text as it is, anything else as JSON."""
    folder.mkdir(parents=True)
    for stem, content in contents.items():
        name = "cout.txt" if stem == "cout" else f"{stem}.json"
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content, sort_keys=True))
    return folder


def entry(status="COMPLETED", name="Rerank (train)", script="experiment_rerank.py", **times) -> dict:
    times = times or {"start_time": START, "stop_time": STOP, "heartbeat": STOP}
    return {"command": "main", "experiment": {"name": name, "mainfile": script}, "status": status, **times}


def config(seed=1, **changes) -> dict:
    return {
        "dataset": {"name": "sop_rerank"},
        "epochs": 2,
        "lr": 0.1,
        "seed": seed,
        "temp_dir": f"logs/{seed}",
    } | changes


def scalar(steps, values) -> dict:
    return {"steps": steps, "values": values, "timestamps": [STOP] * len(steps)}


def training_run(folder: Path, seed=1, best=81.0, status="COMPLETED", **changes) -> Path:
    """A run of two epochs in our form: the first is the best, the second 1 % below it."""
    return write(
        folder,
        run=entry(status),
        config=config(seed, **changes),
        info={"recall": {"1": best, "10": 92.0}, "peak_memory_gb": 1.5},
        metrics={
            "train.loss": scalar([0.0, 0.5, 1.0, 1.5], [4.0, 2.0, 1.0, 0.5]),
            "val.recall@1": scalar([0, 1, 2], [50.0, best, best - 1]),
            "val.recall@10": scalar([0, 1, 2], [60.0, 92.0, 93.0]),
        },
    )


def encoded(value: float) -> dict:
    return {"dtype": "float64", "py/object": "numpy.float64", "value": value}


PRINTED = """\
Extracting query features:   0%|        | 0/76 [00:00<?, ?it/s] 'l2': {1: 83.34, 10: 92.68}}
Training   [000]:   0%|                 | 0/596 [00:00<?, ?it/s]
Extracting query features:   1%|▏       | 1/76 [00:06<08:21,  6.69s/it]{'cosine': {1: 84.5, 10: 92.9},
 'l2': {1: 84.5, 10: 92.9}}
Training   [001]:   0%|                 | 0/596 [00:00<?, ?it/s]
{'cosine': {1: np.float64(85.65),
            10: np.float64(92.95)},
 'l2': {1: np.float64(85.65), 10: np.float64(92.95)}}
Training   [002]:   0%|                 | 0/596 [00:00<?, ?it/s]
{'cosine': {1: 85.61, 10: 92.97}, 'l2': {1: 85.61, 10: 92.97}}
Training   [003]:   0%|                 | 0/596 [00:00<?, ?it/s]
{'cosine': {1: 99.99, 10: 9
"""


def published_run(folder: Path) -> Path:
    """A run in the published form: encoded numbers, twice, and none of them in metrics.json."""
    recall = {
        "cosine": {"json://1": {"py/id": 0}, "json://10": {"py/id": 1}},
        "l2": {"json://1": encoded(85.65), "json://10": encoded(92.95)},
    }
    return write(
        folder,
        run=entry(name="Instance Learning", script="experiment_local.py") | {"result": encoded(85.65)},
        config=config(),
        info={"recall": recall},
        cout=PRINTED,
    )


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


def test_the_last_of_equal_epochs_is_the_best(tmp_path):
    metrics = {"val.recall@1": scalar([0, 1, 2, 3], [50.0, 70.0, 70.0, 60.0])}
    run = read_run(write(tmp_path / "1", run=entry(), config=config(), metrics=metrics))
    assert (run.best, run.best_epoch, run.last) == ({1: 70.0}, 2, {1: 60.0})


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
SHARED = {1: R1, 10: R10}


@pytest.mark.parametrize(
    ("recall", "expected"),
    [
        ({1: R1, 10: R10, 100: R100}, {1: 80.5, 10: 93.25, 100: 93.25}),
        ({1: R1, 10: R10, 100: R10}, {1: 80.5, 10: 93.25, 100: 93.25}),
        ({"cosine": {1: R1, 10: R10}, "l2": {1: R1, 10: R10}}, {1: 80.5, 10: 93.25}),
        ({"l2": {1: R1, 10: R10}, "cosine": {1: R1, 10: R10}}, {1: 80.5, 10: 93.25}),
        ({"cosine": SHARED, "l2": SHARED}, {1: 80.5, 10: 93.25}),
    ],
)
def test_recalls_as_jsonpickle_writes_them(tmp_path, recall, expected):
    info = flatten({"other": [R1 + 1], "recall": recall})
    assert "py/object" in json.dumps(info)
    assert read_run(write(tmp_path / "1", run=entry(), config={"seed": 0}, info=info)).best == expected


@pytest.mark.parametrize(
    ("recall", "expected"),
    [
        # older versions of jsonpickle give no numbers to dicts
        (
            {"json://1": encoded(80.5), "json://10": encoded(93.0), "json://100": {"py/id": 1}},
            {1: 80.5, 10: 93, 100: 93},
        ),
        # object 0 is R@1, but R@100 cannot be below R@10
        ({"json://1": encoded(80.5), "json://10": encoded(93.0), "json://100": {"py/id": 0}}, {1: 80.5, 10: 93}),
        ({"json://1": {"py/id": 7}, "json://10": encoded(93.0)}, {10: 93}),
        ({"json://1": encoded(80.5), "json://10": {"py/reduce": []}, "more": "text"}, {1: 80.5}),
        ("none", {}),
    ],
)
def test_references_are_resolved_or_left_out(tmp_path, recall, expected):
    folder = write(tmp_path / "1", run=entry(), config={"seed": 0}, info={"recall": recall})
    assert read_run(folder).best == expected


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


def test_damaged_folders(tmp_path, capsys):
    training_run(tmp_path / "good" / "1")
    (tmp_path / "empty" / "1").mkdir(parents=True)
    write(tmp_path / "corrupt" / "1", run='{"status": ', config="[]", metrics="", cout="")
    unknown = training_run(tmp_path / "unknown" / "1")
    (unknown / "run.json").unlink()
    (unknown / "metrics.json").write_text('{"val.recall@1": {"steps": 3}, "train.loss": [], "val.recall@10": null}')
    strange = {"status": None, "experiment": "x", "start_time": 3, "stop_time": "never"}
    write(tmp_path / "strange" / "1", run=strange, config={"dataset": 3}, info={"recall": {"1": True}})

    runs = {folder.parent.name: read_run(folder) for folder in find_run_folders(tmp_path)}
    assert list(runs) == ["corrupt", "empty", "good", "strange", "unknown"]
    assert runs["corrupt"].status == runs["empty"].status == "UNREADABLE"
    assert runs["unknown"].status == "UNKNOWN"
    assert (runs["unknown"].best, runs["unknown"].last) == ({1: 81.0, 10: 92.0}, {})
    assert (runs["strange"].best, runs["strange"].duration, runs["strange"].problems) == ({}, None, [])

    assert main([str(tmp_path), str(tmp_path / "nowhere")]) == 0
    out, err = capsys.readouterr()
    unread = out.split("Could not be read\n\n")[1]
    assert f"- {tmp_path}/empty/1: run.json is missing; config.json is missing\n" in unread
    assert f"- {tmp_path}/corrupt/1: run.json is no valid JSON" in unread
    assert "config.json holds no JSON object; metrics.json is empty\n" in unread
    assert f"- {tmp_path}/unknown/1: run.json is missing\n" in unread
    assert f"{tmp_path}/nowhere: no such folder\n" in err


def test_recalls_without_a_config_are_not_taken_for_the_last(tmp_path):
    run = read_run(write(tmp_path / "1", run=entry(), config="", info={"recall": {"1": 81.0}}))
    assert (run.best, run.last, run.problems) == ({1: 81.0}, {}, ["config.json is empty"])


def test_runs_are_found_in_natural_order(tmp_path):
    for name in ("10", "9", "a/2", "_sources"):
        (tmp_path / name).mkdir(parents=True)
    write(tmp_path / "a" / "1", run=entry())
    assert [str(path.relative_to(tmp_path)) for path in find_run_folders(tmp_path)] == ["9", "10", "a/1", "a/2"]


def test_groups_differ_only_in_seed_and_paths(tmp_path):
    training_run(tmp_path / "1", seed=1, resume="a.pt", dataset={"name": "sop", "train_cache_nn_inds": "a.pkl"})
    training_run(tmp_path / "2", seed=2, resume="b.pt", dataset={"name": "sop", "train_cache_nn_inds": "b.pkl"})
    training_run(tmp_path / "3", seed=3, lr=0.2)
    training_run(tmp_path / "4", seed=4, status="FAILED", dataset={"name": "sop", "train_cache_nn_inds": "b.pkl"})
    training_run(tmp_path / "5", seed=5, dataset={"name": "other"})
    groups = group_runs([read_run(folder) for folder in find_run_folders(tmp_path)])
    assert [[run.folder.name for run in group] for group in groups] == [["1", "2"]]


def test_evaluations_of_different_checkpoints_under_one_seed_are_not_averaged(tmp_path):
    for name, resume in (("1", "frozen.pt"), ("2", "finetune.pt"), ("3", "finetune.pt")):
        training_run(tmp_path / name, seed=0, resume=resume, temp_dir=name)
    groups = group_runs([read_run(folder) for folder in find_run_folders(tmp_path)])
    assert [[run.folder.name for run in group] for group in groups] == [["2", "3"]]


def test_a_seed_in_a_path_does_not_keep_evaluations_apart(tmp_path):
    for seed in (1, 2, 12):
        for name in ("frozen", "finetune"):
            training_run(tmp_path / f"{seed}{name}", seed=seed, resume=f"logs/{seed}/{name}/resnet18_sop.pt")
    training_run(tmp_path / "3frozen", seed=3, resume="elsewhere/frozen/resnet18_sop.pt")
    groups = group_runs([read_run(folder) for folder in find_run_folders(tmp_path)])
    assert sorted(sorted(run.folder.name for run in group) for group in groups) == [
        ["12finetune", "1finetune", "2finetune"],
        ["12frozen", "1frozen", "2frozen"],
    ]


@pytest.fixture
def three_runs(tmp_path):
    """Two seeds and a published run."""
    training_run(tmp_path / "1", seed=1, best=80.0)
    training_run(tmp_path / "2", seed=2, best=83.0)
    published_run(tmp_path / "3")
    return [read_run(folder) for folder in find_run_folders(tmp_path)]


def test_text(three_runs):
    runs, title, groups = as_tables(three_runs, text_table).rstrip("\n").split("\n\n")
    header, first, _, third = runs.splitlines()
    names = (
        "folder experiment script dataset seed R@1 best R@10 best best epoch R@1 last R@10 last duration memory (GB) "
        "status group"
    )
    assert " ".join(header.split()) == names
    assert first.split("  ")[0] == str(three_runs[0].folder)
    assert first.endswith("25:05:06         1.50  COMPLETED      1")
    assert first.split()[-10:-4] == ["1", "80.00", "92.00", "1", "79.00", "93.00"]
    assert third.split()[-7:] == ["85.65", "92.95", "2", "85.61", "92.97", "25:05:06", "COMPLETED"]
    assert "mean ± sample standard deviation" in title
    assert groups.splitlines()[1].split("  ")[-1] == "93.00 ± 0.00"
    assert "81.50 ± 2.12  92.00 ± 0.00  80.50 ± 2.12" in groups
    assert len({line.index("COMPLETED") for line in runs.splitlines()[1:]}) == 1


def test_markdown(three_runs):
    tables = as_tables(three_runs, markdown_table, "## ")
    lines = [line for line in tables.splitlines() if line.startswith("|")]
    runs, groups = lines[:5], lines[5:]
    assert {line.count("|") for line in runs} == {15}
    assert {line.count("|") for line in groups} == {10}
    assert set(runs[1]) == set(groups[1]) == {"|", "-", " "}
    assert groups[2].startswith("| 1 | 2 | Rerank (train) | sop_rerank | 1, 2 | 81.50 ± 2.12 |")
    assert markdown_table([{"a": "x|y"}]) == "| a |\n| --- |\n| x\\|y |"


def test_csv(three_runs):
    first, second, third = csv.DictReader(StringIO(as_csv(three_runs)))
    assert (first["R@1 best"], first["R@10 last"], first["best epoch"]) == ("80.0", "93.0", "1")
    assert (first["duration_s"], first["seed"], first["status"]) == ("90306", "1", "COMPLETED")
    assert first["n"] == second["n"] == "2"
    assert float(second["R@1 best mean"]) == 81.5
    assert float(second["R@1 best sd"]) == pytest.approx(4.5**0.5)
    assert float(second["R@1 last mean"]) == 80.5
    assert (third["R@1 best"], third["group"], third["n"], third["R@1 best sd"]) == ("85.65", "", "", "")


def test_epoch_means():
    assert epoch_means([(0.0, 4.0), (0.5, 2.0), (1.0, 1.0), (1.5, 0.5)]) == [(0.5, 3.0), (1.5, 0.75)]


def test_plot(three_runs, tmp_path):
    for name, start in (("plots/curves.png", b"\x89PNG\r\n\x1a\n"), ("curves.pdf", b"%PDF")):
        plot_runs(three_runs, tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(start)
        assert (tmp_path / name).stat().st_size > 5000


def test_plots_that_cannot_be_drawn(three_runs, tmp_path):
    with pytest.raises(InputError, match=r"curves\.doc was not drawn: its ending"):
        plot_runs(three_runs, tmp_path / "curves.doc")
    evaluation = read_run(write(tmp_path / "4", run=entry(), config={}, info={"recall": {"1": 80.7}}))
    with pytest.raises(InputError, match="none of the runs has logged"):
        plot_runs([evaluation], tmp_path / "curves.png")
    assert not list(tmp_path.glob("curves*"))


def test_nothing_read_is_an_error(tmp_path, capsys):
    (tmp_path / "7").mkdir()
    for folder in (tmp_path, tmp_path / "nowhere"):
        assert main([str(folder)]) == 1
        assert "no run could be read" in capsys.readouterr().err


def test_from_the_command_line(tmp_path):
    training_run(tmp_path / "1")
    (tmp_path / "2").mkdir()
    arguments = [str(tmp_path), str(tmp_path / "1"), "--format", "csv", "--plot", str(tmp_path / "curves.png")]
    done = subprocess.run([sys.executable, "-m", "utils.logs", *arguments], capture_output=True, text=True, check=True)
    rows = list(csv.DictReader(StringIO(done.stdout)))
    assert [row["status"] for row in rows] == ["COMPLETED", "UNREADABLE"]
    assert done.stderr == f"could not be read: {tmp_path}/2: run.json is missing; config.json is missing\n"
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
