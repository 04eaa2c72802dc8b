import math
from datetime import UTC, datetime

import pytest

from tests.utils.logs.folders import encoded, scalar
from utils.logs.json_reader import curve, nested, number, time


def test_nested():
    assert nested({"a": {"b": 3}}, "a", "b") == 3
    assert nested({"a": [3]}, "a", "b") is None
    assert nested(None, "a") is None


@pytest.mark.parametrize(
    "absurd", [None, "5", -1, 100.1, 10**400, math.nan, math.inf, [1], {}, {"value": {"value": 1}}]
)
def test_numbers_that_can_be(absurd):
    assert [number(node, 0, 100) for node in (0, 86.5, 100, encoded(3.5))] == [0, 86.5, 100, 3.5]
    with pytest.raises(ValueError, match="is no number from 0 to 100"):
        number(absurd, 0, 100)


def read_time(text):
    return time({"stop_time": text}, "stop_time")


def test_times():
    assert read_time(None) is None
    assert read_time("2026-01-02T03:04:05.5") == datetime(2026, 1, 2, 3, 4, 5, 500_000, UTC)
    assert read_time("2026-01-02T03:04:05+02:00") == datetime(2026, 1, 2, 1, 4, 5, tzinfo=UTC)


def read_curve(node):
    return curve({"train.loss": node}, "train.loss", -10, 10)


def test_curves():
    assert curve({}, "train.loss", -10, 10) == []
    assert read_curve(scalar([1.5, 0, 0.5], [1, 3.0, encoded(2.0)])) == [(0, 3.0), (0.5, 2.0), (1.5, 1)]
    absurd = scalar([0, -1, 1e10, 10**400, 2, 3, 5], [1, 2, 3, 4, math.nan, 1e308, 8])
    assert read_curve(absurd) == [(0, 1), (5, 8)]
