"""Runs of several ranks: their results are those of one process."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import nullcontext, suppress
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from tqdm import tqdm

import eval_global
import eval_rerank
import experiment_global
import experiment_rerank
from models.ingredient import get_model
from tests import ROOT
from tests.conftest import TINY
from tests.narrow import narrow
from tests.processes import in_processes
from tests.reference import META, pixels
from tests.test_continue import Killed, command_of, killed_after, outcome
from utils import BinaryCrossEntropyWithLogits, Contrastive, pickle_load
from utils.distributed.collectives import (
    all_gather_object,
    all_gather_rows,
    all_reduce_gradients,
    all_reduce_int,
    all_reduce_sum,
    any_rank,
    broadcast_from_rank0,
    shard_slice,
    synchronised,
)
from utils.distributed.group import barrier, process_group, world_size
from utils.errors import InputError
from utils.experiment.command import note_files
from utils.experiment.sacred_setup import reports_errors
from utils.retrieval.knn import nearest_neighbours
from utils.retrieval.pair_scoring import pair_scores
from utils.runtime.ranks import rank
from utils.runtime.signals import Interrupted, deferred_signals, ended_by_signals
from utils.training.losses import MeanOverPairs
from utils.training.steps import global_step, rerank_step

PEER_HAS_DIED = re.compile("closed|reset")  # in gloo's message


def test_collectives_on_three_ranks(tmp_path):
    def work():
        with process_group(1, on_cpu=True):
            part = shard_slice(7)
            whole = torch.arange(21.0).view(7, 3)
            halves = (whole / 3).to(torch.bfloat16)
            exchanged = all_gather_rows(whole[part]), all_gather_rows(halves[part].clone()), all_gather_rows(whole[:0])
            flags = any_rank(False), any_rank(rank() == 1)
            numbers = (
                world_size(),
                all_reduce_int(part.stop - part.start),
                all_reduce_sum(torch.tensor([float(rank())])).item(),
            )
            assert torch.equal(exchanged[0], whole) and torch.equal(exchanged[1], halves) and not len(exchanged[2])
            return (part.start, part.stop), shard_slice(7, 3), shard_slice(2), flags, numbers

    results = in_processes(3, work, tmp_path)
    assert [part for part, *_ in results] == [(0, 2), (2, 4), (4, 7)]
    assert [groups for _, groups, *_ in results] == [slice(0, 3), slice(3, 6), slice(6, 7)]
    assert [short for _, _, short, *_ in results] == [slice(0, 0), slice(0, 1), slice(1, 2)]
    assert [flags for *_, flags, _ in results] == [(False, True)] * 3
    assert [numbers for *_, numbers in results] == [(3, 7, 3.0)] * 3


def test_all_reduce_of_gradients_missing_on_some_ranks(tmp_path):
    def work():
        model = torch.nn.ModuleList(torch.nn.Linear(2, 3) for _ in range(3))
        with process_group(1, on_cpu=True):
            if rank():
                model[0].weight.grad = torch.full((3, 2), 1.5)
            model[1].bias.grad = torch.full((3,), float(rank()))
            all_reduce_gradients(model.parameters())
        return [None if p.grad is None else p.grad.unique().tolist() for p in model.parameters()]

    for gradients in in_processes(3, work, tmp_path):
        assert gradients == [[3.0], None, None, [3.0], None, None]


def small_model(**settings):
    torch.manual_seed(0)
    with narrow():
        return get_model(6, **META["default"] | TINY["model"] | {"normalize": True} | settings)


STEPS = {
    "global": (global_step, Contrastive(0.5), {}),
    "global, micro_batch": (global_step, Contrastive(0.5), {"micro_batch": 2}),
    "rerank": (rerank_step, MeanOverPairs(BinaryCrossEntropyWithLogits()), {}),
    "rerank, micro_batch": (rerank_step, MeanOverPairs(BinaryCrossEntropyWithLogits()), {"micro_batch": 3}),
    "rerank, frozen": (rerank_step, MeanOverPairs(BinaryCrossEntropyWithLogits()), {"freeze_backbone": True}),
}


@pytest.mark.parametrize("name", STEPS)
def test_gradients_equal_those_of_one_process(name, tmp_path):
    make_step, loss_of, settings = STEPS[name]
    model_settings = {key: value for key, value in settings.items() if key == "freeze_backbone"}
    options = {key: value for key, value in settings.items() if key not in model_settings}
    batches = [15, 3] if make_step is rerank_step else [13, 2]

    def work():
        model, steps = small_model(**model_settings).train(), []
        with process_group(1, on_cpu=True):
            step = make_step(model, loss_of, **options)
            for size in batches:
                images, labels = pixels("processes", size, 3, 64, 64), torch.arange(size) // 2
                local = shard_slice(size, 3 if make_step is rerank_step else 1)
                model.zero_grad()
                loss, accuracy = step(images[local], labels[local], lambda loss: 8 * loss)
                all_reduce_gradients(model.parameters())
                gradients = {key: p.grad.numpy() for key, p in model.named_parameters() if p.grad is not None}
                steps.append((loss.item(), accuracy.item(), gradients))
        return steps

    expected_result = work()
    for result in in_processes(2, work, tmp_path / "2") + in_processes(3, work, tmp_path / "3"):
        for (loss, accuracy, gradients), (expected, expected_accuracy, whole) in zip(
            result, expected_result, strict=True
        ):
            assert loss == pytest.approx(expected, rel=1e-5) and accuracy == pytest.approx(expected_accuracy)
            largest = max(abs(gradient).max() for gradient in whole.values())
            assert gradients.keys() == whole.keys()
            assert max(abs(gradients[key] - whole[key]).max() for key in whole) <= 1e-5 * largest


def test_local_batch_norm_is_refused(tmp_path):
    def work():
        model = small_model(set_bn_eval=False)
        with (
            process_group(1, on_cpu=True),
            pytest.raises(InputError, match=r"one of 2 processes alone: set model\.set_bn_eval"),
        ):
            global_step(model, Contrastive())

    in_processes(2, work, tmp_path)


def search(index):
    nearest_neighbours(torch.randn(50, 8), None, 3, index)


@pytest.mark.parametrize("exchange", [lambda: all_reduce_int(1), lambda: search("Flat"), lambda: search("IVF4,Flat")])
def test_collectives_raise_when_a_rank_dies(exchange, tmp_path):
    def work():
        if rank() == 1:
            with suppress(ZeroDivisionError), process_group(1, on_cpu=True):
                raise ZeroDivisionError
            return
        with pytest.raises(RuntimeError, match=PEER_HAS_DIED), process_group(1, on_cpu=True):
            while True:
                exchange()

    in_processes(2, work, tmp_path)


def test_foreign_process_group_is_ignored(tmp_path):
    def work():
        dist.init_process_group("gloo")
        dist.barrier()  # rank 0 has the store: it must not end while rank 1 connects
        return world_size(), shard_slice(7), all_gather_rows(torch.full((2,), rank())).tolist()

    assert in_processes(2, work, tmp_path) == [(1, slice(0, 7), [number] * 2) for number in (0, 1)]


def test_rank_0_alone_shows_progress_and_errors_name_other_ranks(tmp_path):
    @reports_errors
    def fail():
        raise MemoryError

    def work():
        with pytest.raises(MemoryError) as raised:
            fail()
        return tqdm(disable=False).disable, getattr(raised.value, "__notes__", [])

    assert in_processes(2, work, tmp_path) == [(False, []), (True, ["on rank 1"])]


def test_a_signal_to_all_ranks_interrupts_all(tmp_path):
    def work():
        deferring = nullcontext() if rank() else deferred_signals()
        with pytest.raises(Interrupted), ended_by_signals(), process_group(1, on_cpu=True), deferring:
            os.kill(os.getpid(), signal.SIGTERM)
            while True:  # until rank 1, which the signal ends at once, is gone
                all_reduce_int(1)

    in_processes(2, work, tmp_path)


def score_maps(score):
    maps, identity = torch.ones(4, 2, 1, 1), torch.nn.Identity()
    scorer = SimpleNamespace(encode_queries=identity, encode_candidates=identity, score=score)
    return pair_scores(torch.nn.Linear(1, 1), maps, maps, torch.zeros(4, 1, dtype=torch.int64), [scorer])


@pytest.mark.parametrize(
    "exchange",
    [lambda wait: all_reduce_int(wait()), lambda wait: score_maps(lambda query, candidate: wait() + query[:, 0, 0, 0])],
)
def test_collectives_raise_when_a_rank_hangs(exchange, tmp_path):
    def work():
        with pytest.raises(RuntimeError, match=None if rank() else "[Tt]imed out"), process_group(0.01, on_cpu=True):
            exchange(lambda: time.sleep(2 * rank()) or 0)

    in_processes(2, work, tmp_path)


def test_synchronised_batches_of_different_numbers(tmp_path):
    def work():
        with process_group(1, on_cpu=True):
            return list(synchronised(range(2 * rank())))

    assert in_processes(3, work, tmp_path) == [[], [0, 1], [0, 1, 2, 3]]


def test_barrier_waits_longer_than_the_timeout(tmp_path):
    def work():
        with process_group(0.01, on_cpu=True):
            time.sleep(2 * rank())
            barrier()
            return broadcast_from_rank0(lambda: "done"), all_gather_object(rank())

    assert in_processes(2, work, tmp_path) == [("done", [0, 1])] * 2


def test_a_rendezvous_without_an_address(tmp_path):
    def work():
        del os.environ["MASTER_ADDR"]
        with (
            pytest.raises(InputError, match=r"the ranks cannot meet \(.*MASTER_ADDR.*: see"),
            process_group(1, on_cpu=True),
        ):
            pass

    in_processes(2, work, tmp_path)


def test_files_that_differ_between_machines(tmp_path):
    def work():
        os.environ["LOCAL_RANK"] = "0"  # each is on a machine of its own
        file, run = tmp_path / str(rank()) / "nn.pkl", SimpleNamespace(info={})
        file.parent.mkdir()
        os.chdir(file.parent)
        with process_group(1, on_cpu=True):
            file.write_text("one")
            note_files(run, "nn.pkl")
            assert run.info["md5"] == {"nn.pkl": hashlib.md5(b"one").hexdigest()}
            file.write_text(str(rank()))
            with pytest.raises(InputError, match=rf"nn\.pkl on the machine of rank {1 - rank()} differs"):
                note_files(run, "nn.pkl")

    in_processes(2, work, tmp_path)


def test_a_restart_ignores_addresses_of_earlier_starts(tmp_path, monkeypatch):
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # as torchrun keeps one
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")

    def work(late):
        if rank() == late:
            time.sleep(1)  # the other one finds only what the first start left
        with process_group(1, on_cpu=True):
            return all_reduce_int(rank() + 1)

    for start, late in enumerate((1, 1, 0)):
        assert in_processes(2, lambda late=late: work(late), tmp_path / str(start), store.port) == [3, 3]


COMMANDS = {
    "experiment_global": (
        experiment_global.ex,
        {"epochs": 2},
        {"sampler": "random_id", "batch_size": 6, "num_iterations": 3},
    ),
    "eval_global": (eval_global.ex, {}, {}),
    "experiment_rerank": (experiment_rerank.ex, {"epochs": 2}, {"sampler": "triplet", "batch_size": 30}),
    "frozen_views": (
        experiment_rerank.ex,
        {"epochs": 2, "frozen_views": 2, "model": {"freeze_backbone": True}},
        {"sampler": "triplet", "batch_size": 30},
    ),
    "eval_rerank": (eval_rerank.ex, {"fusion": "crossfit"}, {"image_cache": "cache"}),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_on_two_ranks(tiny, observed, neighbours, checkpoint, tmp_path, name):
    ex, settings, data = COMMANDS[name]
    data = {key: str(tmp_path / value) if key == "image_cache" else value for key, value in data.items()}
    if ex in (experiment_rerank.ex, eval_rerank.ex):
        settings = settings | {"cache_nn_inds": str(neighbours / "test.pkl")}
    if data.get("sampler") == "triplet":
        data |= {"train_cache_nn_inds": str(neighbours / "train.pkl")}
    if name == "eval_rerank":
        settings = settings | {"resume": checkpoint}

    def run(folder):
        if rank():
            ex.run(config_updates=tiny(**settings, temp_dir=folder, dataset=data))
            return None
        run = observed(ex, **tiny(**settings, temp_dir=folder, dataset=data))
        return run.metrics, run.info, run.result

    expected = run(tmp_path / "one")
    (found, *_) = in_processes(2, lambda: run(tmp_path / "two"), tmp_path / "results")
    if name == "experiment_rerank":  # goes on in one process
        settings |= {"epochs": 3, "continue_run": True}
        found, expected = run(tmp_path / "two"), run(tmp_path / "one")
    assert found[2] == expected[2]
    for series in ("train.loss", "train.acc", "val.recall@1"):
        if series in expected[0]:
            assert found[0][series]["steps"] == expected[0][series]["steps"]
            np.testing.assert_allclose(found[0][series]["values"], expected[0][series]["values"], atol=1e-4)
    if name.startswith("eval"):
        assert found[1]["measures"] == expected[1]["measures"]
        (scores, positions), (found_scores, found_positions) = (
            [pickle_load(tmp_path / folder / file) for file in ("nn_dists.pkl", "nn_inds.pkl")]
            for folder in ("one", "two")
        )
        np.testing.assert_allclose(found_scores, scores, rtol=1e-6, atol=1e-6)
        gaps = ~np.isclose(scores[:, 1:], scores[:, :-1], rtol=0, atol=1e-5)
        alone = np.pad(gaps, ((0, 0), (1, 0)), constant_values=True) & np.pad(gaps, ((0, 0), (0, 1)))  # no ties
        assert (found_positions == positions)[alone].all() and alone.mean() > 0.5


def test_a_run_resumes_bit_identically_after_a_rank_has_died(tiny, observed, neighbours, tmp_path, monkeypatch):
    def train(folder):
        ex, settings = command_of("global micro_batch", tiny, neighbours, folder, save_minutes=0, continue_run=True)
        if rank():
            return ex.run(config_updates=settings) and None
        return outcome(observed(ex, **settings), folder / "resnet18_sop.pt")

    def train_until_one_dies():
        if rank():
            killed_after(4, monkeypatch)
        with pytest.raises(Killed if rank() else RuntimeError, match=None if rank() else PEER_HAS_DIED):
            train(tmp_path / "killed")

    whole, killed = (tmp_path / name for name in ("whole", "killed"))
    (expected, _) = in_processes(2, lambda: train(whole), tmp_path / "1")
    in_processes(2, train_until_one_dies, tmp_path / "2")
    last = torch.load(killed / "last.pt", weights_only=True)
    assert (last["epoch"], last["iteration"]) == (1, 2)
    assert in_processes(2, lambda: train(killed), tmp_path / "3")[0] == expected


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("command", ["experiment_global", "experiment_rerank"])
def test_two_gpus_train_as_one(command, tiny, neighbours, tmp_path):
    data = {"batch_size": 18, "sampler": "triplet" if command == "experiment_rerank" else "random"}
    data |= {"train_cache_nn_inds": str(neighbours / "train.pkl")}
    settings = tiny(temp_dir=tmp_path / "state", dataset=data, cpu=False, epochs=1, continue_run=False)
    if command == "experiment_rerank":
        settings["cache_nn_inds"] = str(neighbours / "test.pkl")
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    losses = []
    for processes in (1, 2):
        folder = tmp_path / f"run{processes}"
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        script = ["-m", "tests.narrow", f"{command}.py", "-F", folder, "with", tmp_path / "settings.json"]
        subprocess.run([*map(str, launch + script)], cwd=ROOT, check=True, timeout=300)
        metrics = json.loads((folder / "1" / "metrics.json").read_text())
        losses.append(metrics["train.loss"]["values"] + metrics["val.recall@1"]["values"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)
