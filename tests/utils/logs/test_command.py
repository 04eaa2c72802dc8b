import csv
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest

from tests.utils.logs.folders import config, entry, published_run, scalar, training_run, write
from utils.logs.__main__ import main
from utils.text import width


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


def test_a_terminal_without_unicode(tmp_path):
    for seed in (1, 2):
        training_run(tmp_path / "漢字" / str(seed), seed=seed)
    command = [sys.executable, "-m", "utils.logs", str(tmp_path)]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, encoding="ascii", check=True, env=environment)
    assert r"81.00 \xb1 0.00" in done.stdout
    assert r"\u6f22\u5b57" in done.stdout


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


NUMBER = "9" * 400
METRICS = {"train.loss": scalar([0, 1], [1e308, 1e308]), "val.recall@1": scalar([-1, 1], [50.0, 60.0])}
HOSTILE = {  # what is done to a run's folder, and what is said of it
    "number": (changed("info.json", f'{{"recall": {{"1": {NUMBER}}}}}'), "info.json has an integer of 400 digits"),
    "k": (changed("info.json", f'{{"recall": {{"{NUMBER * 13}": 5.0}}}}'), "info.json: recall is not by K, or by one"),
    "printed k": (changed("cout.txt", f"{{{NUMBER * 13}: 50.0}}"), "cout.txt: an epoch, K or recall is out of range"),
    "metrics": (
        changed("metrics.json", json.dumps(METRICS)),
        "metrics.json: 1 of 2 points of val.recall@1 are left out",
    ),
    "cut": (changed("metrics.json", json.dumps(METRICS)[:50]), "metrics.json is no valid JSON"),
    "deep": (changed("config.json", '{"a": ' + "[" * 9999 + "]" * 9999 + "}"), "config.json is nested more than 100"),
    "year": (
        changed("run.json", json.dumps(entry(start_time="2026-01-01", stop_time="9999-12-31"))),
        "run.json: no run can last from",
    ),
    "pipe": (replaced("run.json", os.mkfifo), "run.json is no regular file"),
    "folder": (replaced("cout.txt", os.mkdir), "cout.txt is no regular file"),
    "loop": (replaced("info.json", lambda path: path.symlink_to(path.name)), "info.json: Too many levels of symbolic"),
    "none": (replaced("cout.txt", lambda path: None), "cout.txt is missing"),
    "artifact": (changed("run.json", json.dumps(entry() | {"artifacts": ["a.pt"]})), "artifact a.pt is missing"),
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
    tables, unread = capsys.readouterr().out.split("\n\nCould not be read\n\n")
    assert unread.startswith(f"- {tmp_path}/hostile: {problem}") and unread.count("\n") == 1
    assert max(map(width, tables.splitlines())) <= 100


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
        else:
            assert max(map(width, out.split("\n\nCould not be read")[0].splitlines())) <= 100


def test_more_problems_than_are_shown(tmp_path, capsys):
    metrics = {f"val.recall@{k}": 3 for k in range(1, 11)}
    write(tmp_path / "1", run=entry(), config=config(), metrics=metrics)
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().out.endswith("val.recall@4 has no steps and values; and 5 more\n")


def test_text_fits_a_terminal_and_the_other_forms_have_all(capsys):
    with tempfile.TemporaryDirectory() as short:  # a longer path is cut
        _check_forms(Path(short), capsys)


def _check_forms(tmp_path, capsys):
    for seed in (1, 2):
        training_run(tmp_path / "experiments" / str(seed), seed=seed)
    published_run(tmp_path / "experiments" / "published")
    assert main([str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert max(map(width, text.splitlines())) <= 100
    assert f"folders are below {tmp_path}/experiments\n" in text
    assert "left out, see --format markdown: script\n" in text
    for form in ("csv", "markdown"):
        assert main([str(tmp_path), "--format", form]) == 0
        out, _ = capsys.readouterr()
        assert out.count("experiment_rerank.py") == 2 and out.count(f"{tmp_path}/experiments/") >= 3
