"""Settings that cannot be used: each is refused in one message, before a photo, a list or a weight is read."""

import pytest

import eval_global
import eval_rerank
import experiment_global
import experiment_rerank
from utils.experiment.run_folder import CommandError

TRAININGS = [experiment_global.ex, experiment_rerank.ex]
EVALUATIONS = [eval_global.ex, eval_rerank.ex]
COMMANDS = TRAININGS + EVALUATIONS

WRONG = [
    *[(COMMANDS, f"dataset.recalls={value!r}") for value in ([], [0], [-1], ["a"], [1, -5], 10, [1.5], [10**9], None)],
    *[(COMMANDS, f"dataset.batch_size={value!r}") for value in (0, -1, "x", 1.5, None, True)],
    *[(COMMANDS, f"dataset.test_batch_size={value!r}") for value in (0, -1, "x")],
    *[(COMMANDS, f"dataset.sample_per_id={value!r}") for value in (0, "x")],
    *[(COMMANDS, f"dataset.num_workers={value!r}") for value in (-1, "x", 0.5)],
    *[(COMMANDS, f"dataset.crop_size={value!r}") for value in (0, 31, -224, 10**6, "x")],
    *[(COMMANDS, f"dataset.{name}=5") for name in ("data_path", "train_file", "test_file", "val_file", "image_cache")],
    *[(COMMANDS, f"dataset.{name}='x'") for name in ("decode", "sampler", "pin_memory", "num_iterations")],
    (COMMANDS, "dataset.test_file=[]"),
    (COMMANDS, "dataset.name=''"),
    *[(COMMANDS, f"model.num_local_features={value!r}") for value in (0, 130, -4, "x", 10**9)],
    *[(COMMANDS, f"model.ert_nhead={value!r}") for value in (0, -1, "x")],
    *[
        (COMMANDS, f"model.{name}=0")
        for name in ("ert_num_encoder_layers", "ert_dim_feedforward", "num_global_features")
    ],
    *[(COMMANDS, f"model.{name}='x'") for name in ("arch", "norm_layer", "ert_activation", "dropout")],
    *[(COMMANDS, f"model.{name}={value!r}") for name in ("pretrained", "grad_checkpointing") for value in (5, None)],
    *[(COMMANDS, f"model.{name}") for name in ("backbone_lr=-1", "pool='max'", "local_size=-1", "pool=None")],
    (COMMANDS, "model.ert_activation='swish'"),
    (COMMANDS, "model.ert_dropout=1.5"),
    *[(COMMANDS, f"temp_dir={value!r}") for value in (5, None, "", ["a"])],
    *[(COMMANDS, f"{name}='x'") for name in ("cpu", "cudnn_flag", "precision")],
    *[(TRAININGS, f"epochs={value!r}") for value in (-1, "x", 1.5)],
    *[(TRAININGS, f"micro_batch={value!r}") for value in (0, -3, "x")],
    *[(TRAININGS, f"scheduler_tau={value!r}") for value in ("abc", ["a"], 60, [-1])],
    *[(TRAININGS, f"scheduler_gamma={value!r}") for value in ("x", -0.1, float("nan"))],
    *[(TRAININGS, f"{name}={value!r}") for name in ("lr", "weight_decay") for value in ("x", -1, float("inf"))],
    ([experiment_global.ex], "temperature=0"),
    ([experiment_global.ex], "momentum=2"),
    ([experiment_global.ex], "nesterov=1"),
    ([experiment_rerank.ex], "frozen_views=0"),
    ([experiment_rerank.ex], "objective='triplet'"),
    *[([experiment_rerank.ex], f"num_negatives={value!r}") for value in (0, -1, None, 1.5)],
    *[([eval_rerank.ex], f"num_candidates={value!r}") for value in (-1, "x", 1.5)],
    ([eval_rerank.ex], "cache_nn_inds=5"),
    ([eval_global.ex], "knn_index=None"),
    *[(EVALUATIONS, f"features={value!r}") for value in (5, "")],
    *[([*TRAININGS, *EVALUATIONS], f"resume={value!r}") for value in (5, "")],
]


@pytest.mark.parametrize(("commands", "setting"), WRONG, ids=[setting for _, setting in WRONG])
def test_a_setting_that_cannot_be_used(commands, setting, tmp_path):
    name, _, value = setting.partition("=")
    *part, key = name.split(".")
    changes = {key: eval(value, {"nan": float("nan"), "inf": float("inf")})}
    for ex in commands:
        with pytest.raises(CommandError) as refused:
            config = {"temp_dir": str(tmp_path / "run")} | ({part[0]: changes} if part else changes)
            ex.run(config_updates=config, options={"--unobserved": True})
        assert str(refused.value).startswith(setting)
        assert ": give " in str(refused.value) or " is unknown: choose from " in str(refused.value)
    assert not (tmp_path / "run").exists()
