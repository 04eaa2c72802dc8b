import math
import os
import socket

import pytest

from utils.logs import json_reader
from utils.logs.json_reader import RunFiles


def read(folder, content):
    (folder / "info.json").write_text(content)
    run = RunFiles(folder)
    return run.json("info.json"), list(run.problems)


def test_json(tmp_path):
    assert read(tmp_path, '{"a": [1, 2.5, "x"]}') == ({"a": [1, 2.5, "x"]}, [])
    assert read(tmp_path, " \n") == ({}, ["info.json is empty"])
    assert read(tmp_path, "[1]") == ({}, ["info.json holds no JSON object"])
    assert read(tmp_path, '{"a": 1') == (
        {},
        ["info.json is no valid JSON (Expecting ',' delimiter: line 1 column 8 (char 7))"],
    )


def test_integers_of_any_length(tmp_path):
    assert read(tmp_path, f'{{"a": {"9" * 300}}}') == ({"a": int("9" * 300)}, [])
    for sign, infinity in (("", math.inf), ("-", -math.inf)):
        for digits in (401, 5001):
            content, problems = read(tmp_path, f'{{"a": {sign}{"9" * digits}}}')
            assert content == {"a": infinity}
            assert problems == [f"info.json has an integer of {digits} digits, which is taken for infinite"]


@pytest.mark.parametrize("opening, closing", [("[", "]"), ('{"a":', "}")])
def test_deep_nesting(tmp_path, opening, closing):
    for levels in (100, 500, 100_000):
        content = read(tmp_path, f'{{"a": {opening * levels}1{closing * levels}}}')
        assert content == ({}, ["info.json is nested more than 100 levels deep"])
    content, problems = read(tmp_path, f'{{"a": {opening * 99}1{closing * 99}}}')
    assert list(content) == ["a"] and problems == []


def test_only_regular_files_are_read(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.chdir(tmp_path)  # the address of a socket has at most 107 bytes
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    run = RunFiles(tmp_path)
    assert [run.text(name) for name in ("folder", "pipe", "socket", "zeros", "loop", "dangling", "none")] == [None] * 7
    assert run.text("needed", needed=True) is None
    assert list(run.problems) == [
        "folder is no regular file",
        "pipe is no regular file",
        "socket is no regular file",
        "zeros is no regular file",
        "loop: Too many levels of symbolic links",
        "dangling is missing",
        "needed is missing",
    ]


def test_huge_files_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(json_reader, "LARGEST_FILE", 1_000_000)
    with (tmp_path / "cout.txt").open("wb") as file:
        file.truncate(10**12)
    run = RunFiles(tmp_path)
    assert run.text("cout.txt") is None
    assert list(run.problems) == ["cout.txt is not read: it is larger than 1 MB"]


def test_problems_are_short_and_noted_once(tmp_path):
    run = RunFiles(tmp_path)
    for _ in range(2):
        run.note("x" * 1000)
    (problem,) = run.problems
    assert len(problem) == 200
