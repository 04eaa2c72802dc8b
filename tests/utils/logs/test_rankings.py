import pytest

from utils.logs.recalls import interval_of, read_rankings


def test_measures_and_gains():
    info = {
        "measures": {"global": {"R@1": 50.0, "MRR": 60.0, "folder": 3}, "logit": {"R@1": 61.25}},
        "gains": {"logit": {"R@1": [11.25, 9.0, 13.5]}},
    }
    logit = {"R@1": 61.25, "R@1 over global": "+11.25 (+9.00 to +13.50)"}
    assert read_rankings(info) == {"global": {"R@1": 50.0, "MRR": 60.0}, "logit": logit}


def test_former_names_of_rankings():
    def names(*former):
        return list(read_rankings({"measures": {name: {"R@1": 50.0} for name in former}}))

    with_logits = names("global", "published", "chamfer", "fused", "weighted")
    assert with_logits == ["global", "logit", "chamfer + cosine", "logit + cosine + chamfer", "weighted"]
    assert names("global", "chamfer_alone", "chamfer") == ["global", "chamfer", "chamfer + cosine"]
    assert names("global", "chamfer", "chamfer + cosine") == ["global", "chamfer", "chamfer + cosine"]


@pytest.mark.parametrize("gain", [[1.0, 1e308, 2.0], ["1", 2.0, 3.0]])
def test_gains_that_cannot_be(gain):
    with pytest.raises(ValueError, match="is no number from -100 to 100"):
        read_rankings({"measures": {"a": {"R@1": 5.0}}, "gains": {"a": {"R@1": gain}}})


def test_the_numbers_of_a_gain():
    assert interval_of("+1.50 (-0.25 to +3.25)") == (1.5, -0.25, 3.25)
    assert interval_of("") is None and interval_of("+1.50") is None
