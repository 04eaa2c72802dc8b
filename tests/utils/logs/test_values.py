import math
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.utils.logs.folders import encoded, scalar
from utils.logs.json_reader import RunFiles, curve, nested, noted_number, number, time, whole_number


def test_nested():
    assert nested({"a": {"b": 3}}, "a", "b") == 3
    assert nested({"a": [3]}, "a", "b") is None
    assert nested(None, "a") is None


def test_numbers_that_can_be():
    assert [number(node, 0, 100) for node in (0, 86.5, 100, encoded(3.5))] == [0, 86.5, 100, 3.5]
    absurd = [True, None, "5", -1, 100.1, 10**400, math.nan, math.inf, [1], {}, {"value": {"value": 1}}]
    assert [number(node, 0, 100) for node in absurd] == [None] * len(absurd)
    assert [whole_number(digits) for digits in ("0", "123456789", "9" * 5000)] == [0, 123456789, None]


def test_absent_numbers_are_no_problem():
    files = RunFiles(Path())
    assert (noted_number(files, "memory", None, 0, 10), list(files.problems)) == (None, [])
    assert (noted_number(files, "memory", 1e308, 0, 10), list(files.problems)) == (
        None,
        ["memory is no number from 0 to 10"],
    )


def read_time(text):
    files = RunFiles(Path())
    return time(files, {"stop_time": text}, "stop_time"), list(files.problems)


def test_times():
    assert read_time(None) == (None, [])
    assert read_time("2026-01-02T03:04:05.5") == (datetime(2026, 1, 2, 3, 4, 5, 500_000, UTC), [])
    assert read_time("2026-01-02T03:04:05+02:00") == (datetime(2026, 1, 2, 1, 4, 5, tzinfo=UTC), [])


@pytest.mark.parametrize(
    "text",
    [3, {}, "", "never", "\ud800", "2026-01-01T00:00:00+99:99", "9999-12-31T23:59:59-23:59", "0001-01-01T00:00+23:59"],
)
def test_no_times(text):
    assert read_time(text) == (None, ["run.json: stop_time is no time"])


def read_curve(node):
    files = RunFiles(Path())
    return curve(files, {"train.loss": node}, "train.loss", -10, 10), list(files.problems)


def test_curves():
    assert read_curve(scalar([1.5, 0, 0.5], [1, 3.0, encoded(2.0)])) == ([(0, 3.0), (0.5, 2.0), (1.5, 1)], [])
    assert read_curve([]) == ([], ["metrics.json: train.loss has no steps and values"])
    assert read_curve({"steps": [0, 1], "values": [5]}) == (
        [(0, 5)],
        ["metrics.json: train.loss has 2 steps, but 1 values"],
    )
    absurd = scalar([0, -1, 1e10, 10**400, 2, 3, "4", 5], [1, 2, 3, 4, math.nan, 1e308, 7, 8])
    assert read_curve(absurd) == (
        [(0, 1), (5, 8)],
        ["metrics.json: 6 of 8 points of train.loss are left out: they are no numbers, or out of range"],
    )
