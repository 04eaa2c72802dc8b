"""What the five commands say of their settings: in `--help`, and of names that are none."""

import json
import re

import pytest

import eval_global
import eval_rerank
import experiment_global
import experiment_rerank
import prepare_data
from utils.experiment.run_folder import CommandError
from utils.experiment.setting_names import settings_of

COMMANDS = [eval_global.ex, eval_rerank.ex, experiment_global.ex, experiment_rerank.ex, prepare_data.ex]


@pytest.mark.parametrize("ex", COMMANDS, ids=lambda ex: ex.path)
def test_all_settings_named_ones_and_commands_are_explained(ex):
    assert [name for name, (_, comment) in settings_of(ex).items() if not comment] == []
    for _, described in (*ex.gather_named_configs(), *ex.gather_commands()):
        assert re.match(r"\S.*\.", (described.__doc__ or "").strip().split("\n")[0]), described


@pytest.mark.parametrize("word", ["--help", "-h", "help"])
def test_help(word, capsys):
    with pytest.raises(SystemExit) as ended:
        eval_rerank.ex.run_commandline(["eval_rerank.py", word])
    assert ended.value.code is None
    printed = capsys.readouterr().out
    before, settings = printed.split("\nSettings, behind `with` as NAME=VALUE, with their defaults:\n")
    settings, named = settings.split("\n\nNamed settings, behind `with` as NAME:\n")
    assert "--unobserved" in before and "print_config" in before
    assert settings.startswith("  temp_dir                      'logs/temp'         where nn_inds.pkl, nn_dists.pkl")
    rows = re.findall(r"^  (\S+) ", settings, re.MULTILINE)
    config = eval_rerank.ex.run("print_config").config
    parts = {f"{part}.{name}" for part in ("dataset", "model") for name in config[part]}
    assert sorted(rows) == sorted(parts | config.keys() - {"dataset", "model"})
    line = (
        "  dataset.num_iterations        465                 batches in an epoch of 'random_id'; None: images // batch"
    )
    assert line in settings  # of a comment on a line of its own
    assert "  model.resnet50       The published network.\n" in named
    assert max(map(len, settings.splitlines() + named.splitlines())) < 120


def test_a_command_without_named_settings(capsys):
    with pytest.raises(SystemExit):
        prepare_data.ex.run_commandline(["prepare_data.py", "--help"])
    printed = capsys.readouterr().out
    assert "  val_classes     0                   training classes to hold out" in printed and "Named" not in printed


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("dataset.crop_sze=128", "dataset.crop_sze is no setting: did you mean dataset.crop_size?"),
        ("obective=joint", "obective is no setting: did you mean objective?"),
        ("batch_size=8", "batch_size is no setting: did you mean dataset.batch_size?"),
        ("data.batch_size=8", "data.batch_size is no setting: did you mean dataset.batch_size?"),
        ("model.crop_size=128", "model.crop_size is no setting: did you mean dataset.crop_size?"),
        ("dtype=bf16", "dtype is no setting: --help lists all"),
        ("dataset.fast=1", "dataset.fast is no setting: --help lists all"),
        ("model.resnet5", "model.resnet5 is no named setting: did you mean model.resnet50?"),
        ("dta.demo_global", "dta.demo_global is no named setting: did you mean dataset.demo_global?"),
        ("lite0", "lite0 is no named setting: did you mean model.lite0?"),
        ("xyzzy", "xyzzy is no named setting: choose from 'dataset.sop_global', 'dataset.sop_rerank', 'dataset.demo"),
    ],
)
def test_a_name_that_is_none(word, message, capsys):
    with pytest.raises(SystemExit) as ended:
        experiment_rerank.ex.run_commandline(["experiment_rerank.py", "with", word])
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"CommandError: {message}")


def test_a_name_that_is_none_in_a_file(tmp_path):
    (tmp_path / "settings.json").write_text(json.dumps({"dataset": {"crop_sze": 128}}))
    with pytest.raises(CommandError, match=r"^dataset\.crop_sze is no setting: did you mean dataset\.crop_size\?$"):
        eval_global.ex.run("print_config", named_configs=[str(tmp_path / "settings.json")])
    with pytest.raises(CommandError, match=r"^xyzzy is no named setting: this command has none$"):
        prepare_data.ex.run("print_config", named_configs=["xyzzy"])
    forced = eval_global.ex.run("print_config", config_updates={"note": "of mine"}, options={"--force": True})
    assert forced.config["note"] == "of mine"


def test_no_warning_of_types_that_are_allowed(capsys):
    """Nor is a named config's docstring a setting."""
    changes = {"dataset": {"test_file": ["a", "b"]}, "model": {"pretrained": "weights.pt", "num_local_features": None}}
    run = eval_global.ex.run("print_config", changes, named_configs=["dataset.demo_global", "model.demo"])
    assert "Changed type" not in capsys.readouterr().err
    assert run.config["dataset"]["num_iterations"] is None and run.config["model"]["num_local_features"] is None
    assert "__doc__" not in run.config["dataset"] and "__doc__" not in run.config["model"]
