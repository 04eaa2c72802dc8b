import math
import os
from datetime import UTC, datetime

import pytest

from tests.utils.logs.folders import encoded, scalar
from utils.errors import InputError
from utils.logs.json_reader import curve, nested, number, read_json, read_text, time


def test_json(tmp_path):
    file = tmp_path / "info.json"
    assert read_json(file) == {}
    file.write_text('{"a": [1, 2.5, "x"]}')
    assert read_json(file) == {"a": [1, 2.5, "x"]}
    for content, problem in (
        ("", r"info.json is no valid JSON \(Expecting value: line 1 column 1 \(char 0\)\)"),
        ("[1]", "info.json holds no JSON object"),
        ('{"a": 1', r"info.json is no valid JSON \(Expecting ',' delimiter: line 1 column 8 \(char 7\)\)"),
        (f'{{"a": {"9" * 5001}}}', r"info.json is no valid JSON \(Exceeds the limit"),
        ("[" * 100_000, r"info.json is no valid JSON \(maximum recursion depth exceeded"),
    ):
        file.write_text(content)
        with pytest.raises(InputError, match=problem):
            read_json(file)


def test_only_regular_files_are_read(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name, target in (("zeros", "/dev/zero"), ("loop", "loop"), ("dangling", "nowhere")):
        (tmp_path / name).symlink_to(target)
    for name in ("folder", "pipe", "zeros", "loop", "dangling"):
        with pytest.raises(InputError, match=f"{name} is no regular file"):
            read_text(tmp_path / name)
    assert read_text(tmp_path / "none") == ""


def test_nested():
    assert nested({"a": {"b": 3}}, "a", "b") == 3
    assert nested({"a": [3]}, "a", "b") is None
    assert nested(None, "a") is None


def test_numbers():
    assert [number(node) for node in (0, 86.5, -100, encoded(3.5))] == [0, 86.5, -100, 3.5]
    for node in (None, "5", math.nan, math.inf, [1], {}, {"value": {"value": 1}}):
        with pytest.raises(ValueError, match="is no finite number"):
            number(node)


def test_times():
    assert time({"stop_time": None}, "stop_time") is None
    entry = {"stop_time": "2026-01-02T03:04:05.5"}
    assert time(entry, "stop_time") == datetime(2026, 1, 2, 3, 4, 5, 500_000, UTC)


def test_curves():
    assert curve({}, "train.loss") == []
    scalars = scalar([1.5, 0, 0.5, 2, 3, math.nan], [1, 3.0, encoded(2.0), math.nan, math.inf, 1])
    assert curve({"train.loss": scalars}, "train.loss") == [(0, 3.0), (0.5, 2.0), (1.5, 1)]
