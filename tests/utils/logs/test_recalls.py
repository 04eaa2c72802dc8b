import pytest

from tests.utils.logs.folders import scalar
from utils.logs.recalls import read_rankings, read_validations, recorded_recalls

PRINTED = "Validation [000] {1: 50.0, 10: 60.0}\n"


def test_prints_that_never_end_are_given_up_quickly():
    for endless in ("{1: 50.0, 10: 60.0, ", "{", "{1:" + " " * 100, "np.float64(", "1" * 1000):
        assert read_validations({}, PRINTED + endless * 10_000) == {1: {1: 50.0, 10: 60.0}}


def test_only_numbers_are_k():
    metrics = {"val.recall@1": scalar([1], [50.0]), "val.recall@0": scalar([1], [50.0]), "val.loss": {}}
    assert read_validations(metrics, "Validation [001] {0: 50.0}") == {1: {1: 50.0}}
    assert recorded_recalls({"recall": {"1": 50.0, "0": 60.0, "json://100": {"py/id": 10**30}}}) == {1: 50.0}
    with pytest.raises(ValueError, match="nan is no finite number"):
        recorded_recalls({"recall": {"10": float("nan")}})


def test_measures_and_gains():
    info = {
        "measures": {"global": {"R@1": 50.0, "MRR": 60.0, "folder": 3}, "logit": {"R@1": 61.25}},
        "gains": {"logit": {"R@1": [11.25, 9.0, 13.5]}},
    }
    logit = {"R@1": 61.25, "R@1 over global": "+11.25 (+9.00 to +13.50)"}
    assert read_rankings(info) == {"global": {"R@1": 50.0, "MRR": 60.0}, "logit": logit}
    info["gains"]["logit"]["R@1"] = ["1", 2.0, 3.0]
    with pytest.raises(ValueError, match="'1' is no finite number"):
        read_rankings(info)
