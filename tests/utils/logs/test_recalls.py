import pytest

from tests.utils.logs.folders import scalar
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
    assert read_validations({}, PRINTED + absurd) == {1: {1: 50.0, 10: 60.0}}


def test_prints_that_never_end_are_given_up_quickly():
    for endless in ("{1: 50.0, 10: 60.0, ", "{", "{1:" + " " * 100, "np.float64(", "1" * 1000):
        assert read_validations({}, PRINTED + endless * 10_000) == {1: {1: 50.0, 10: 60.0}}


def test_absurd_names_of_metrics_are_left_out():
    metrics = {"val.recall@1": scalar([1, -1], [50.0, 60.0]), "val.recall@" + "9" * 5000: scalar([1], [50.0])}
    assert read_validations(metrics, "") == {1: {1: 50.0}}


def test_references_and_other_names_are_left_out_of_records():
    recall = {"1": 50.0, "9" * 5000: 60.0, "json://100": {"py/id": 10**30}}
    assert recorded_recalls({"recall": recall}) == {1: 50.0}
    with pytest.raises(ValueError, match=r"1e\+308 is no number from 0 to 100"):
        recorded_recalls({"recall": {"10": 1e308}})
