"""One seed, one machine: the same files, to the last bit, with any number of the loaders' workers."""

import pytest

import eval_global
import eval_rerank
import experiment_global
import experiment_rerank
from tests.conftest import CUDA
from utils.training.resume import LAST

TRAINING = {"epochs": 1, "model": {"dropout": 0.3, "ert_dropout": 0.3}}
FROZEN = {"freeze_backbone": True}
TRIPLETS = {"sampler": "triplet", "batch_size": 18}
COMMANDS = {
    "eval_global": (eval_global.ex, {}, {"decode": "fast"}),
    "eval_rerank": (eval_rerank.ex, {"fusion": "crossfit"}, {}),
    "experiment_global": (experiment_global.ex, TRAINING, {"sampler": "random", "batch_size": 8}),
    "experiment_rerank": (experiment_rerank.ex, TRAINING, TRIPLETS),
    "frozen_views": (experiment_rerank.ex, {"epochs": 1, "frozen_views": 2, "model": FROZEN}, TRIPLETS),
}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("cpu", [True, pytest.param(False, marks=CUDA.marks)], ids=["cpu", "cuda"])
def test_the_same_files_with_any_number_of_workers(tiny, observed, neighbours, checkpoint, tmp_path, name, cpu):
    ex, settings, data = COMMANDS[name]
    if ex in (eval_rerank.ex, experiment_rerank.ex):
        settings = settings | {"cache_nn_inds": str(neighbours / "test.pkl")}
    if data is TRIPLETS:
        data = data | {"train_cache_nn_inds": str(neighbours / "train.pkl")}
    if ex is eval_rerank.ex:
        settings = settings | {"resume": checkpoint}
    settings = settings | {"cpu": cpu, "cudnn_flag": "deterministic"}
    written = []
    for workers in (0, 2):
        folder = tmp_path / str(workers)
        run = observed(ex, **tiny(**settings, temp_dir=folder, dataset=data | {"num_workers": workers}))
        files = {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in (LAST, ".lock")}
        written.append((files, run.result, {name: series["values"] for name, series in run.metrics.items()}))
    assert written[0] == written[1]
    assert written[0][0]
