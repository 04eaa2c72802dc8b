"""A job of several processes beside one of one: `python -m benchmarks processes`.

First what they come to, on CPUs, then their rates: two processes of one thread each beside one of two threads, or as
many as there are GPUs. Rates are medians of rounds that take turns, each in processes of its own.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.optim import AdamW
from torch.optim.lr_scheduler import MultiStepLR

from benchmarks.run import build
from tests.soak import Workshop, of_several, result, run
from utils import pickle_load
from utils.distributed.collectives import shard_slice
from utils.distributed.group import process_group
from utils.retrieval.pair_scoring import matcher_for, pair_scores
from utils.runtime.device import own_gpu
from utils.runtime.precision import set_precision
from utils.runtime.ranks import is_main_process, silence_other_ranks
from utils.text import markdown_table
from utils.training.loop import train_epoch
from utils.training.losses import BinaryCrossEntropyWithLogits, MeanOverPairs
from utils.training.state import TrainingState
from utils.training.steps import rerank_step

RERANKINGS = ("fp32", "micro_batch", "frozen_views", "fp16", "fp16 micro_batch")
KINDS = ("global fp32", "global bf16", *(f"rerank {kind}" for kind in RERANKINGS))
ROUNDS, REPETITIONS = 3, 3
IMAGES = {"cpu": 24, "cuda": 300}  # of a training step
QUERIES = {"cpu": 8, "cuda": 600}  # of 100 candidates each


def run_in(processes: int, command: list[str]) -> None:
    """Of one thread each: with another number one process, too, rounds differently."""
    several = of_several(command, "--standalone", f"--nproc_per_node={processes}")
    run(command if processes == 1 else several, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True)


def comparisons() -> list[dict[str, object]]:
    """Trainings of three epochs and evaluations of small runs, by two and three processes and by one."""
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        workshop = Workshop(Path(folder), [sys.executable])

        def compare(command: Callable, name: str, what: str, outcome: Callable, *settings: str) -> Path:
            """Add rows; returns the folder of the run by one process."""
            places = [workshop.new_folder() for _ in range(3)]
            for number, place in enumerate(places, 1):
                run_in(number, command(name, place, *settings))
            alone, *others = map(outcome, places)
            for number, found in enumerate(others, 2):
                difference = f"{what} {abs(found - alone).max():.1e}"
                rows.append({"run": name, "processes": number, "largest difference": difference})
            return places[0]

        trained = [compare(workshop.training, kind, "losses", losses_of, "epochs=3") for kind in KINDS]
        settings = f"resume={trained[-1] / 'out' / 'resnet18_sop.pt'}", f"cache_nn_inds={workshop.folder / 'test.pkl'}"
        compare(workshop.command, "eval_global.py", "squared distances, of the largest,", scores_of, settings[0])
        compare(workshop.command, "eval_rerank.py", "logits, of the largest,", scores_of, *settings)
    return rows


def losses_of(place: Path) -> np.ndarray:
    return np.array(result(place)[1]["train.loss"][1])


def scores_of(place: Path) -> np.ndarray:
    """The scores of an evaluation's neighbours, as shares of the largest."""
    scores = pickle_load(place / "out" / "nn_dists.pkl")
    return scores / abs(scores).max()


def rates(device: str) -> dict[str, float]:
    """Training steps' images and scored pairs a second of this job."""
    silence_other_ranks()
    with process_group(5, device == "cpu"):
        place = torch.device("cpu") if device == "cpu" else own_gpu()
        dtype, model = set_precision(None, place), build().to(place)
        optimizer = AdamW(model.parameters(), 1e-4, fused=True)
        state = TrainingState.new(model, optimizer, MultiStepLR(optimizer, [9]), dtype)
        step, size = rerank_step(model, MeanOverPairs(BinaryCrossEntropyWithLogits()), dtype), IMAGES[device]
        images = torch.randint(0, 256, (size, 3, 224, 224), dtype=torch.uint8)[shard_slice(size, 3)]
        loader = [(images, torch.arange(len(images)) // 2, torch.arange(len(images)))]
        maps = torch.randn(QUERIES[device] + 100, 128, 7, 7)
        neighbours = torch.stack([torch.randperm(len(maps))[:100] for _ in range(QUERIES[device])])
        scorers = [matcher_for(model, maps.dtype)]

        def seconds(work) -> float:
            times = []
            for _ in range(1 + REPETITIONS):
                start = time.perf_counter()
                work()
                times.append(time.perf_counter() - start)
            return statistics.median(times[1:])

        trained = size / seconds(lambda: train_epoch(state, step, loader))
        model.eval()
        scored = neighbours.numel() / seconds(
            lambda: pair_scores(model, maps[: len(neighbours)], maps, neighbours, scorers)
        )
        return {"training, images/s": trained, "scoring, pairs/s": scored}


def measured(processes: int, threads: int, device: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks", "processes", "--rates", "--device", device]
    launch = ("--standalone", f"--nproc_per_node={processes}")
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(of_several(command, *launch), env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def scaling(device: str) -> list[dict[str, object]]:
    """Rates of several processes beside those of one."""
    if device == "cpu":
        variants = [(1, 2), (2, 1)]
    else:
        variants = [(number, 1) for number in (1, 2, 4, 8) if number <= torch.cuda.device_count()]
    rounds = [[measured(*variant, device) for variant in variants] for _ in range(ROUNDS)]
    rows = []
    for place, (processes, threads) in enumerate(variants):
        row: dict[str, object] = {"processes": processes, "threads of each": threads}
        for name in rounds[0][0]:
            row[name] = f"{statistics.median(found[place][name] for found in rounds):.1f}"
            ratio = statistics.median(found[place][name] / found[0][name] for found in rounds)
            row[f"ratio, {name.partition(',')[0]}"] = f"{ratio:.2f}"
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rates", action="store_true", help="only print this job's rates")
    arguments = parser.parse_args()
    if arguments.rates:
        found = rates(arguments.device)
        if is_main_process():
            print(json.dumps(found))
        return
    if arguments.device == "cpu":
        print(markdown_table(comparisons()))
    print(markdown_table(scaling(arguments.device)))
