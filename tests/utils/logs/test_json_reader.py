import os
import socket

import pytest

from utils.errors import InputError
from utils.logs import json_reader
from utils.logs.json_reader import read_config, read_json, read_text


def read(folder, content):
    (folder / "info.json").write_text(content)
    return read_json(folder / "info.json")


def test_json(tmp_path):
    assert read_json(tmp_path / "info.json") == {}
    assert read(tmp_path, '{"a": [1, 2.5, "x"]}') == {"a": [1, 2.5, "x"]}
    for content, problem in (
        (" \n", "info.json is empty"),
        ("[1]", "info.json holds no JSON object"),
        ('{"a": 1', r"info.json is no valid JSON \(Expecting ',' delimiter: line 1 column 8 \(char 7\)\)"),
        (f'{{"a": {"9" * 5001}}}', r"info.json is no valid JSON \(Exceeds the limit"),
        ("[" * 100_000, r"info.json is no valid JSON \(maximum recursion depth exceeded"),
    ):
        with pytest.raises(InputError, match=problem):
            read(tmp_path, content)


@pytest.mark.parametrize("opening, closing", [("[", "]"), ('{"a":', "}")])
def test_deep_settings(tmp_path, opening, closing):
    for levels in (100, 450):
        read(tmp_path, f'{{"a": {opening * levels}1{closing * levels}}}')
        with pytest.raises(InputError, match=r"info\.json is nested more than 100 levels deep"):
            read_config(tmp_path / "info.json")
    read(tmp_path, f'{{"a": {opening * 99}1{closing * 99}}}')
    assert list(read_config(tmp_path / "info.json")) == ["a"]


def test_only_regular_files_are_read(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.chdir(tmp_path)  # the address of a socket has at most 107 bytes
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("folder", "pipe", "socket", "zeros", "loop", "dangling"):
        with pytest.raises(InputError, match=f"{name} is no regular file"):
            read_text(tmp_path / name)
    assert read_text(tmp_path / "none") == ""


def test_huge_files_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(json_reader, "LARGEST_FILE", 1_000_000)
    with (tmp_path / "cout.txt").open("wb") as file:
        file.truncate(10**12)
    with pytest.raises(InputError, match=r"cout\.txt is not read: it is larger than 1 MB"):
        read_text(tmp_path / "cout.txt")
