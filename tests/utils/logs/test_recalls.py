from pathlib import Path

import pytest

from tests.utils.logs.folders import scalar
from utils.logs.json_reader import RunFiles
from utils.logs.recalls import read_validations, recorded_recalls

PRINTED = "Validation [000] {1: 50.0, 10: 60.0}\n"


@pytest.mark.parametrize(
    "absurd",
    [
        f"Validation [001] {{{'9' * 5000}: 50.0}}",
        f"Validation [{'9' * 5000}] {{1: 70.0}}",
        f"Validation [001] {{1: {'9' * 5000}}}",
        "Validation [001] {1: 100.5}",
        "Validation [001] {0: 50.0}",
    ],
)
def test_absurd_prints_are_left_out(absurd):
    files = RunFiles(Path())
    assert read_validations(files, {}, PRINTED + absurd) == {1: {1: 50.0, 10: 60.0}}
    assert list(files.problems) == ["cout.txt: an epoch, K or recall is out of range"]


def test_prints_that_never_end_are_given_up_quickly():
    files = RunFiles(Path())
    for endless in ("{1: 50.0, 10: 60.0, ", "{", "{1:" + " " * 100, "np.float64(", "1" * 1000):
        assert read_validations(files, {}, PRINTED + endless * 10_000) == {1: {1: 50.0, 10: 60.0}}
    assert list(files.problems) == []


def test_absurd_names_of_metrics_are_left_out():
    files = RunFiles(Path())
    metrics = {"val.recall@1": scalar([1, -1], [50.0, 60.0]), "val.recall@" + "9" * 5000: scalar([1], [50.0])}
    assert read_validations(files, metrics, "") == {1: {1: 50.0}}
    points, name = files.problems
    assert points.startswith("metrics.json: 1 of 2 points of val.recall@1 are left out")
    assert name.startswith("metrics.json: the K of val.recall@999") and name.endswith(" is out of range")


def test_absurd_records_are_left_out():
    files = RunFiles(Path())
    recall = {"1": 50.0, "10": 1e308, "9" * 5000: 60.0, "json://100": {"py/id": 10**30}}
    assert recorded_recalls(files, {"recall": recall}) == {1: 50.0}
    assert list(files.problems) == [
        "info.json: recall is not by K, or by one out of range",
        "info.json: no recall could be read for R@10, R@100",
    ]


def test_more_k_than_a_table_can_show():
    files = RunFiles(Path())
    recalls = recorded_recalls(files, {"recall": {str(k): 50.0 for k in range(1, 20_001)}})
    assert list(recalls) == list(range(1, 101))
    assert list(files.problems) == ["there are recalls for 20000 K: those after the first 100 are left out"]
