import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from io import StringIO

import pytest

from tests.utils.logs.folders import config, entry, scalar, training_run, write
from utils.logs.__main__ import main


def test_nothing_read_is_an_error(tmp_path, capsys):
    (tmp_path / "7").mkdir()
    assert main([str(tmp_path), str(tmp_path / "nowhere")]) == 1
    _, err = capsys.readouterr()
    assert err.startswith(f"{tmp_path}/nowhere: no such folder\nno run could be read: give folders")


def test_from_the_command_line(tmp_path):
    training_run(tmp_path / "漢")
    (tmp_path / "2").mkdir()
    arguments = [str(tmp_path), str(tmp_path / "漢"), "--format", "csv", "--plot", str(tmp_path / "curves.png")]
    command, environment = [sys.executable, "-m", "utils.logs", *arguments], os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    rows = list(csv.DictReader(StringIO(done.stdout)))
    assert [row["status"] for row in rows] == ["UNREADABLE", "COMPLETED"]
    assert rows[1]["folder"] == rf"{tmp_path}/\u6f22"  # which ASCII lacks
    assert done.stderr == f"could not be read: {tmp_path}/2: run.json is missing\n"
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_folder_named_twice_is_one_run(tmp_path, monkeypatch, capsys):
    training_run(tmp_path / "1")
    (tmp_path / "link").symlink_to("1")
    monkeypatch.chdir(tmp_path)
    assert main(["1", str(tmp_path), "link", "--format", "csv"]) == 0
    assert [row["folder"] for row in csv.DictReader(StringIO(capsys.readouterr().out))] == ["1"]


def changed(name: str, text: str) -> Callable:
    return lambda folder: (folder / name).write_text(text)


def replaced(name: str, make: Callable) -> Callable:
    def replace(folder):
        (folder / name).unlink()
        make(folder / name)

    return replace


HOSTILE = {  # what is done to a run's folder, and what is said of it
    "number": (changed("info.json", '{"recall": {"1": "x"}}'), "it is no run of these commands: ValueError"),
    "cut": (changed("metrics.json", '{"train.loss": {"steps": [0, 1]'), "metrics.json is no valid JSON"),
    "no curve": (changed("metrics.json", '{"train.loss": {"steps": [0]}}'), "it is no run of these commands: KeyError"),
    "lengths": (changed("metrics.json", json.dumps({"train.loss": scalar([0, 1], [5])})), "it is no run of these"),
    "time": (changed("run.json", json.dumps(entry(start_time="noon"))), "it is no run of these commands: ValueError"),
    "pipe": (replaced("run.json", os.mkfifo), "run.json is no regular file"),
    "loop": (replaced("info.json", lambda path: path.symlink_to(path.name)), "info.json is no regular file"),
    "none": (replaced("run.json", lambda path: None), "run.json is missing"),
    "artifact": (changed("run.json", json.dumps(entry() | {"artifacts": ["a.pt"]})), "artifact a.pt is missing"),
    "artifacts": (changed("run.json", json.dumps(entry() | {"artifacts": 3})), "it is no run of these commands: Type"),
}
NAMES = (os.fsdecode(b"caf\xe9"), "line\n|\x1b[2J", "漢" * 80)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_folders_leave_the_others_alone(tmp_path, capsys, name):
    change, problem = HOSTILE[name]
    training_run(tmp_path / "good")
    main([str(tmp_path), "--format", "csv"])
    (expected,) = csv.DictReader(StringIO(capsys.readouterr().out))
    change(training_run(tmp_path / "hostile"))
    assert main([str(tmp_path), "--format", "csv", "--plot", str(tmp_path / "curves.png")]) == 0
    out, err = capsys.readouterr()
    good, _ = csv.DictReader(StringIO(out))
    assert {column: good[column] for column in expected} == expected
    assert f"could not be read: {tmp_path}/hostile: {problem}" in err
    assert main([str(tmp_path)]) == 0
    _, unread = capsys.readouterr().out.split("\n\nCould not be read\n\n")
    assert unread.startswith(f"- {tmp_path}/hostile: {problem}") and unread.count("\n") == 1


def test_hostile_texts_in_all_forms(tmp_path, capsys):
    texts = ("\ud800", "\x1b[2J", "a\r\nb|c", "x" * 10_000, "漢" * 200, {"a": ["b"]}, 10**400, 1e308, None, True)
    names = [*NAMES, *map(str, range(len(texts)))]
    for folder, text in zip(names, (*texts, *texts), strict=False):
        run = json.dumps(entry(name=text, script=text))
        settings = config(text, dataset={"name": text}, **{"1": 1, "": None, "\ud800": [{}]})
        write(tmp_path / folder, run=run, config=json.dumps(settings), info={"recall": {"1": 50.0}})
    for form in ("text", "csv", "markdown"):
        assert main([str(tmp_path), "--format", form]) == 0
        out, _ = capsys.readouterr()
        assert out.encode() and not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", out)
        if form == "csv":
            assert len(list(csv.DictReader(StringIO(out)))) == len(names)
        elif form == "markdown":
            assert len({line.replace(r"\|", "").count("|") for line in out.split("\n\n")[0].splitlines()}) == 1
