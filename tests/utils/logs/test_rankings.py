from pathlib import Path

from utils.logs.json_reader import RunFiles
from utils.logs.recalls import interval_of, read_rankings


def read(info):
    files = RunFiles(Path())
    return read_rankings(files, info), list(files.problems)


def test_measures_and_gains():
    info = {
        "measures": {"global": {"R@1": 50.0, "MRR": 60.0}, "logit": {"R@1": 61.25}},
        "gains": {"logit": {"R@1": [11.25, 9.0, 13.5]}},
    }
    logit = {"R@1": 61.25, "R@1 over global": "+11.25 (+9.00 to +13.50)"}
    assert read(info) == ({"global": {"R@1": 50.0, "MRR": 60.0}, "logit": logit}, [])


def test_former_names_of_rankings():
    def names(*former):
        return list(read({"measures": {name: {"R@1": 50.0} for name in former}})[0])

    with_logits = names("global", "published", "chamfer", "fused", "weighted")
    assert with_logits == ["global", "logit", "chamfer + cosine", "logit + cosine + chamfer", "weighted"]
    assert names("global", "chamfer_alone", "chamfer") == ["global", "chamfer", "chamfer + cosine"]
    assert names("global", "chamfer", "chamfer + cosine") == ["global", "chamfer", "chamfer + cosine"]


def test_absurd_measures_and_gains_are_left_out():
    measures = {"a": {"R@1": 1e308, "MRR": 60.0, "folder": 3, "R@" + "9" * 5000: 50.0}, "b": [], "c": {}}
    info = {"measures": measures, "gains": {"a": {"R@1": [1.0, 1e308, 2.0]}, "c": {"R@1": 3}}}
    assert read(info) == (
        {"a": {"MRR": 60.0}, "c": {}},
        [
            "info.json: R@1 of a is no number from 0 to 100",
            "info.json: the gain of a is no number from -100 to 100",
            "info.json: ranking b has no measures",
        ],
    )
    assert read({"measures": 3}) == ({}, ["info.json: measures has no rankings"])


def test_more_measures_than_a_table_can_show():
    rankings, problems = read({"measures": {"global": {f"R@{k}": 50.0 for k in range(1, 1001)}}})
    assert list(rankings["global"]) == [f"R@{k}" for k in range(1, 101)]
    assert problems == ["info.json: ranking global has 1000 measures: those after the first 100 are left out"]


def test_the_numbers_of_a_gain():
    assert interval_of("+1.50 (-0.25 to +3.25)") == (1.5, -0.25, 3.25)
    assert interval_of("") is None and interval_of("+1.50") is None
