from pathlib import Path

import pytest

import eval_global
import eval_rerank
import experiment_global
import experiment_rerank
from utils.errors import InputError
from utils.experiment.command import RULES
from utils.settings import FLAG, TEXT, check_settings, either, expand_home, list_of, number, one_of, whole_number

RECORDED_ONLY = {"dataset.test_cache_nn_inds", "model.ert_seq_len"}


@pytest.mark.parametrize(
    ("rule", "allowed", "refused"),
    [
        (whole_number(1), [1, 10**30], [0, -1, 1.0, True, "1", None, [1]]),
        (whole_number(0, 4), [0, 4], [5]),
        (whole_number(4, multiple=4), [4, 128], [0, 2, 130]),
        (whole_number(1).or_none(), [None, 1], [0]),
        (number(0), [0, 0.5, 1e308], [-1e-9, float("nan"), float("inf"), 10**400, True, "0", None]),
        (number(0, 1), [0, 1], [1.5]),
        (one_of("a", None), ["a", None], ["b", 0, False, ["a"], {}]),
        (list_of(whole_number(1)), [[1], (1, 2)], [[], [0], 1, "1", [1, "a"], [None]]),
        (list_of(whole_number(0), least=0), [[]], [[-1]]),
        (either(TEXT, list_of(TEXT)), ["a", ["a", "b"]], ["", [], [""], 3]),
        (FLAG, [True, False], [0, 1, "True", None]),
        (TEXT, ["a/b"], ["", "a\0", 5, None, b"a"]),
    ],
)
def test_rules(rule, allowed, refused):
    assert all(rule.accepts(value) for value in allowed)
    assert not any(rule.accepts(value) for value in refused)


def test_the_message_names_setting_value_and_what_is_allowed():
    for rule, message in (
        (whole_number(1, multiple=4), r"^model\.x=3: give a multiple of 4 from 1$"),
        (list_of(number(0.5, 2000)), r"^model\.x=3: give a list of one or more, each a number from 0\.5 to 2,000$"),
        (one_of("a", "b", None), r"^model\.x=3 is unknown: choose from 'a', 'b', None$"),
        (TEXT.or_none(), r"^model\.x=3: give a text, or None$"),
    ):
        with pytest.raises(InputError, match=message):
            check_settings({"x": 3}, {"x": rule}, "model.")


def test_home_is_expanded_where_a_path_begins_with_it(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert expand_home({"a": ["~/x", "~", Path("~/y")], "b": {"c": "~/z"}}) == {
        "a": ["/home/me/x", "/home/me", Path("/home/me/y")],
        "b": {"c": "/home/me/z"},
    }
    for value in ("x~", "a/~/b", "./~/x", "~nobody-of-this-name/x", "", None, 3, Path("x")):
        assert expand_home(value) == value


@pytest.mark.parametrize("command", [eval_global, eval_rerank, experiment_global, experiment_rerank])
def test_every_setting_has_a_rule_that_its_default_keeps(command):
    """Named configs included."""
    for named in ((), ("dataset.sop_global", "model.resnet50"), ("dataset.demo_rerank", "model.demo")):
        config = command.ex._create_run("main", {}, named).config
        parts = {"": RULES | command.RULES[""], "dataset": command.RULES["dataset"], "model": command.RULES["model"]}
        ruled = {f"{part}.{name}".lstrip(".") for part, rules in parts.items() for name in rules}
        settings = {key for key in config if key not in parts}
        settings |= {f"{part}.{key}" for part in ("dataset", "model") for key in config[part] if key != "seed"}
        assert settings == (ruled | RECORDED_ONLY)
        check_settings(config, parts[""])
        check_settings(config["dataset"], parts["dataset"])
        check_settings(config["model"], parts["model"])
