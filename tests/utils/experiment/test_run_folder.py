"""Sacred's run folders on a full disk, and commands ended by a signal."""

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
from sacred import Experiment
from sacred.observers import file_storage

import eval_global
import prepare_data
from tests import ROOT
from tests.faults import names
from utils.experiment.run_folder import CommandError, RunFolder
from utils.experiment.sacred_setup import reports_errors, set_up
from utils.runtime.ranks import local_rank, rank

COMMAND = """
import sys, time
from sacred import Experiment
from utils.experiment.sacred_setup import reports_errors, set_up
ex = set_up(Experiment("sleeper"))
@ex.automain
@reports_errors
def main():
    print("begun")
    {body}
"""


def begin(folder: Path, body: str) -> subprocess.Popen:
    """A command whose main does `body`, its run folder in `folder`."""
    (folder / "sleeper.py").write_text(COMMAND.format(body=body))
    return subprocess.Popen(
        [sys.executable, folder / "sleeper.py", "-F", folder / "log"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(folder / "tmp")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_ends_a_command_without_a_traceback(tmp_path, number):
    (tmp_path / "tmp").mkdir()
    command = begin(tmp_path, "time.sleep(60)")
    assert command.stdout and command.stdout.readline() == "begun\n"
    command.send_signal(number)
    _, errors = command.communicate(timeout=30)
    assert command.returncode == 128 + number
    assert f"interrupted by {number.name}" in errors and "Traceback" not in errors
    run = json.loads((tmp_path / "log" / "1" / "run.json").read_text())
    assert run["status"] == "INTERRUPTED"
    assert "begun" in (tmp_path / "log" / "1" / "cout.txt").read_text()  # printed before the first heartbeat
    assert names(tmp_path / "tmp") == []


def test_output_before_an_error_is_kept(tmp_path):
    (tmp_path / "tmp").mkdir()
    command = begin(tmp_path, "print('last words'); raise ValueError('no')")
    command.communicate(timeout=30)
    assert command.returncode == 1
    assert (tmp_path / "log" / "1" / "cout.txt").read_text() == "begun\nlast words\n"


@pytest.fixture
def ex() -> Experiment:
    experiment = set_up(Experiment("talker", save_git_info=False))

    @experiment.main
    @reports_errors
    def main(_run):
        print("right")
        experiment.log_scalar("loss", 0.5, 1)
        return 7

    return experiment


def run(ex: Experiment, folder: Path):
    ex.observers[:] = [RunFolder(folder)]
    return ex.run()


def test_failed_writes_are_repeated(tmp_path, ex, monkeypatch, capsys):
    """The disk is full for the last heartbeat, or also at the end."""
    failing: set[str] = set()
    really_save = RunFolder._save

    def save(folder, name, text):
        if name in failing:
            folder.unsaved[name] = f"{name} could not be written: No space left on device"
        else:
            really_save(folder, name, text)

    monkeypatch.setattr(RunFolder, "_save", save)
    assert run(ex, tmp_path).result == 7
    metrics = (tmp_path / "1" / "metrics.json").read_text()
    assert json.loads(metrics)["loss"]["values"] == [0.5]

    original = RunFolder.started_event

    def started(folder, *args, **kwargs):
        run_id = original(folder, *args, **kwargs)
        failing.update(("metrics.json", "cout.txt"))
        return run_id

    monkeypatch.setattr(RunFolder, "started_event", started)
    with pytest.raises(SystemExit, match=r"are right, but the run folder \S+2 lacks the last state of .*No space left"):
        run(ex, tmp_path)
    assert "right" in capsys.readouterr().out
    assert (tmp_path / "2" / "cout.txt").read_text() == ""
    assert (tmp_path / "2" / "metrics.json").read_text() == "{}"
    assert json.loads((tmp_path / "2" / "run.json").read_text())["status"] == "COMPLETED"


def test_artifacts_are_atomic(tmp_path, monkeypatch):
    experiment = set_up(Experiment("maker", save_git_info=False))
    (tmp_path / "weights.pt").write_bytes(b"1" * 100_000)

    @experiment.main
    def main(_run):
        monkeypatch.setattr("shutil.copyfileobj", fail)
        _run.add_artifact(str(tmp_path / "weights.pt"))

    def fail(content, file):
        file.write(content.read(1000))
        raise OSError(28, "No space left on device")

    with pytest.raises(SystemExit, match=r"lacks the last state of weights\.pt \(.*No space left on device"):
        run(experiment, tmp_path / "log")
    assert names(tmp_path / "log" / "1") == ["config.json", "cout.txt", "info.json", "metrics.json", "run.json"]


def test_leftovers_of_killed_runs_are_deleted(tmp_path, ex):
    run(ex, tmp_path)
    left, young = (tmp_path / "1" / f".{number}.weights.pt.part" for number in ("0f7b9721", "0f7b9722"))
    for path in (left, young):
        path.write_bytes(b"1")
    os.utime(left, (0, 0))
    run(ex, tmp_path)
    assert not left.exists() and young.exists()


def test_run_folder_cannot_be_created(tmp_path, ex, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(CommandError, match=r"the run folder \S+file \(-F\) cannot be written: "):
        run(ex, tmp_path / "file")
    with pytest.raises(SystemExit):
        ex.run_commandline(["talker", "-F", str(tmp_path / "file")])
    errors = capsys.readouterr().err
    assert errors.count("cannot be written") == 1 and "Traceback" not in errors


def test_run_folder_is_created_in_part(tmp_path, ex, monkeypatch):
    def save(folder, name, text):
        folder.unsaved[name] = f"{name} could not be written: No space left on device"

    monkeypatch.setattr(RunFolder, "_save", save)
    with pytest.raises(CommandError, match=r"\(-F\) cannot be begun: run\.json could not be written: No space"):
        run(ex, tmp_path)


@pytest.mark.parametrize("command", [prepare_data.ex, eval_global.ex])
def test_queued_run(command, tmp_path, monkeypatch):
    """From another folder, in which Sacred alone does not find the sources."""
    monkeypatch.chdir(tmp_path)
    command.run_commandline(["command", "-q", "-F", str(tmp_path / "ours"), "with", "seed=3"])
    folder = tmp_path / "ours" / "1"
    written = json.loads((folder / "run.json").read_text())
    assert (written["status"], written["command"]) == ("QUEUED", "main")
    assert json.loads((folder / "config.json").read_text())["seed"] == 3

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(file_storage, "FileStorageObserver", RunFolder.__base__)
    monkeypatch.setattr(file_storage, "copyfile", shutil.copyfile)
    command.run_commandline(["command", "-q", "-F", str(tmp_path / "sacred"), "with", "seed=3"])
    assert names(folder) == names(tmp_path / "sacred" / "1") and "ranks.py" in names(folder)
    for name in set(names(folder)) - {"run.json"}:
        assert (folder / name).read_bytes() == (tmp_path / "sacred" / "1" / name).read_bytes(), name
    assert json.loads((tmp_path / "sacred" / "1" / "run.json").read_text()).keys() == written.keys()


def test_help_for_an_unknown_command(ex, capsys):
    for name, code in (("eval", 1), ("main", None)):
        with pytest.raises(SystemExit) as ended:
            ex.run_commandline(["talker", "help", name])
        assert ended.value.code == code
    assert 'Command "eval" not found. Available commands are: print_config' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": ""}, None),
        ({"WORLD_SIZE": "1", "RANK": "5"}, None),
        ({"WORLD_SIZE": "2", "RANK": "", "LOCAL_RANK": ""}, None),
        ({"WORLD_SIZE": "auto"}, r"WORLD_SIZE='auto', .* give a whole number from 1 there: unset WORLD_SIZE"),
        ({"WORLD_SIZE": "-2"}, "WORLD_SIZE='-2', .* from 1 there"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK='2', .* from 0 to 1 there"),
    ],
)
def test_rank_and_world_size(ex, variables, message, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with nullcontext() if message is None else pytest.raises(CommandError, match=message):
        assert ex.run(options={"--unobserved": True}).result == 7
        assert (rank(), local_rank()) == (0, 0)


@pytest.mark.parametrize("is_distributed", [True, False])
def test_rank_1_is_silent(is_distributed, tmp_path, monkeypatch, capsys):
    """It neither prints nor observes, except in commands that are not distributed."""
    experiment = set_up(Experiment("talker", save_git_info=False), is_distributed)
    silenced = []
    monkeypatch.setattr("utils.experiment.sacred_setup.silence_other_ranks", lambda: silenced.append(True))
    monkeypatch.setattr(file_storage, "FileStorageObserver", RunFolder)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")

    @experiment.main
    def main():
        pass

    experiment.run_commandline(["talker", "print_config"])
    assert "Configuration" in capsys.readouterr().out and not silenced
    experiment.run_commandline(["talker", "-F", str(tmp_path / "log")])
    assert bool(silenced) == is_distributed
    assert (tmp_path / "log").exists() != is_distributed


def test_home_is_expanded(tmp_path, monkeypatch, capsys):
    """On the command line, in a file of settings, of an ingredient, in a list, and the run folder's."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "settings.json").write_text(json.dumps({"temp_dir": "~/out", "dataset": {"image_cache": "~/cache"}}))
    updates = ["settings.json", "resume=~/m.pt", "dataset.data_path=~/set", "dataset.test_file=['~/a.txt','b~']"]
    run = eval_global.ex.run_commandline(["eval_global.py", "-q", "-F", "~/log", "with", *updates])
    home = str(tmp_path / "home")
    assert (run.config["temp_dir"], run.config["resume"]) == (f"{home}/out", f"{home}/m.pt")
    data = run.config["dataset"]
    assert (data["image_cache"], data["data_path"]) == (f"{home}/cache", f"{home}/set")
    assert data["test_file"] == [f"{home}/a.txt", "b~"]
    assert json.loads((tmp_path / "home" / "log" / "1" / "config.json").read_text())["temp_dir"] == f"{home}/out"
    assert names(tmp_path) == ["home", "settings.json"]


@pytest.mark.parametrize("seed", ["a", -1, 2**32, None, 1.5])
def test_invalid_seed(tmp_path, ex, seed):
    ex.observers[:] = [RunFolder(tmp_path / "log")]
    with pytest.raises(CommandError, match=r"^seed=.*: give a whole number from 0 to 4,294,967,295$"):
        ex.run(config_updates={"seed": seed})
    assert not (tmp_path / "log").exists()


SOURCES = """
import sys
import eval_rerank
kept = {source.filename for source in eval_rerank.ex.sources}
used = {module.__file__ for module in sys.modules.values() if getattr(module, "__file__", None)}
print(sorted(file for file in used - kept if file.startswith(sys.argv[1]) and "site-packages" not in file), len(kept))
"""


def test_run_folder_has_all_sources(tiny, observed, tmp_path):
    listed = subprocess.run([sys.executable, "-c", SOURCES, f"{ROOT}/"], cwd=ROOT, capture_output=True, text=True)
    missing, number = listed.stdout.strip().rsplit(" ", 1)
    assert missing == "[]" and int(number) > 40, listed.stderr
    run = observed(eval_global.ex, **tiny(temp_dir=tmp_path / "out"))
    kept = dict(run.run["experiment"]["sources"])
    for name in ("eval_global.py", "models/encoder_layer.py", "sop/images/photo.py", "utils/retrieval/knn.py"):
        assert (run.folder.parent / kept[name]).read_text() == (ROOT / name).read_text()


@pytest.mark.parametrize("is_dirty", [False, True])
def test_warns_of_a_dirty_working_tree(tiny, observed, tmp_path, monkeypatch, is_dirty):
    for source in eval_global.ex.sources:
        monkeypatch.setattr(source, "repo", source.repo or "repository")
        monkeypatch.setattr(source, "is_dirty", is_dirty)
    run = observed(eval_global.ex, **tiny(temp_dir=tmp_path / "out"))
    assert ("the working tree has changes that are not committed" in run.printed) == is_dirty
    assert all(repository["dirty"] == is_dirty for repository in run.run["experiment"]["repositories"])
