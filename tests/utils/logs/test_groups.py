import csv
import json
from io import StringIO

from tests.utils.logs.folders import STOP, entry, training_run
from utils.logs.groups import group_runs, join_continued
from utils.logs.runs import find_run_folders, read_run
from utils.logs.table import as_csv, as_tables, group_rows
from utils.text import text_table


def test_groups_differ_only_in_seed_and_paths(tmp_path):
    training_run(tmp_path / "1", seed=1, resume="a.pt", dataset={"name": "sop", "train_cache_nn_inds": "a.pkl"})
    training_run(tmp_path / "2", seed=2, resume="b.pt", dataset={"name": "sop", "train_cache_nn_inds": "b.pkl"})
    training_run(tmp_path / "3", seed=3, lr=0.2)
    training_run(tmp_path / "4", seed=4, status="FAILED", dataset={"name": "sop", "train_cache_nn_inds": "b.pkl"})
    training_run(tmp_path / "5", seed=5, dataset={"name": "other"})
    groups = group_runs([read_run(folder) for folder in find_run_folders(tmp_path)])
    assert [[run.folder.name for run in group.runs] for group in groups] == [["1", "2"]]


def test_evaluations_of_different_checkpoints_under_one_seed_are_not_averaged(tmp_path):
    for name, resume in (("1", "frozen.pt"), ("2", "finetune.pt"), ("3", "finetune.pt")):
        training_run(tmp_path / name, seed=0, resume=resume, temp_dir=name)
    training_run(tmp_path / "4", seed=1, resume="finetune.pt", temp_dir="4")
    groups = group_runs([read_run(folder) for folder in find_run_folders(tmp_path)])
    assert [([run.folder.name for run in group.runs], group.num_repeats) for group in groups] == [(["3", "4"], 1)]


def start(time: str) -> str:
    return json.dumps(entry(start_time=time, stop_time=STOP))


def test_repeats_of_one_seed_are_no_group(tmp_path):
    for name in "12345":
        training_run(tmp_path / name, seed=7, best=80.0 + int(name), temp_dir=name)
    runs = [read_run(folder) for folder in find_run_folders(tmp_path)]
    assert group_runs(runs) == []
    assert "differ only in their seed" not in as_tables(runs, text_table)


def test_of_a_repeated_seed_the_run_started_last_counts(tmp_path):
    for name, seed, best in (("1", 7, 80.0), ("2", 7, 82.0), ("3", 7, 81.0), ("4", 8, 86.0)):
        training_run(tmp_path / name, seed=seed, best=best)
    (tmp_path / "2" / "run.json").write_text(start("2026-01-02T04:00:00"))
    (tmp_path / "3" / "run.json").write_text(json.dumps(entry(stop_time=STOP)))  # nothing is known of its start
    runs = [read_run(folder) for folder in find_run_folders(tmp_path)]
    (group,) = group_runs(runs)
    assert ([run.folder.name for run in group.runs], group.num_repeats) == (["2", "4"], 2)
    (row,) = group_rows([group], lambda average, deviation: round(average, 2))
    assert (row["n"], row["seeds"], row["repeats left out"], row["R@1 best"]) == (2, "7, 8", 2, 84.0)
    rows = list(csv.DictReader(StringIO(as_csv(runs))))
    assert [(row["group"], row["n"], row["repeats left out"]) for row in rows] == [
        ("", "", ""),
        ("1", "2", "2"),
        ("", "", ""),
        ("1", "2", "2"),
    ]


def test_repeated_evaluations_do_not_keep_seeds_apart(tmp_path):
    for name, seed in (("1", 1), ("2", 1), ("3", 2)):
        training_run(tmp_path / name, seed=seed, resume=f"logs/{seed}/resnet18_sop.pt", temp_dir=name)
    (group,) = group_runs([read_run(folder) for folder in find_run_folders(tmp_path)])
    assert ([run.folder.name for run in group.runs], group.num_repeats) == (["2", "3"], 1)


def test_a_seed_in_a_path_does_not_keep_evaluations_apart(tmp_path):
    for seed in (1, 2, 12):
        for name in ("frozen", "finetune"):
            training_run(tmp_path / f"{seed}{name}", seed=seed, resume=f"logs/{seed}/{name}/resnet18_sop.pt")
    training_run(tmp_path / "3frozen", seed=3, resume="elsewhere/frozen/resnet18_sop.pt")
    groups = group_runs([read_run(folder) for folder in find_run_folders(tmp_path)])
    assert sorted(sorted(run.folder.name for run in group.runs) for group in groups) == [
        ["12finetune", "1finetune", "2finetune"],
        ["12frozen", "1frozen", "2frozen"],
    ]


def test_a_run_that_was_continued_is_one(tmp_path):
    times = (("01", "02", "INTERRUPTED"), ("05", "06", "RUNNING"), ("08", "10", "COMPLETED"))
    for number, (begun, ended, status) in enumerate(times, 1):
        folder = training_run(tmp_path / str(number))
        hours = {"start_time": f"2026-01-02T{begun}:00:00", "heartbeat": f"2026-01-02T{ended}:00:00"}
        artifacts = {"artifacts": ["gone.pt"] if number == 1 else []}
        (folder / "run.json").write_text(json.dumps(entry(status, **hours) | artifacts))
        (folder / "info.json").write_text(json.dumps({"run_id": "a", "recall": {"1": 80.0}}))
    training_run(tmp_path / "4", seed=2)
    whole, other = join_continued([read_run(folder) for folder in find_run_folders(tmp_path)])
    assert (whole.folder.name, whole.status, str(whole.duration)) == ("3", "COMPLETED", "4:00:00")
    assert whole.problems == [f"{tmp_path / '1'}: artifact gone.pt is missing"]
    assert other.folder.name == "4"
    copied = [read_run(tmp_path / "3"), read_run(tmp_path / "3")]
    assert len(join_continued(copied)) == 2  # of a folder that was copied nothing is added up
