"""Rates of several ranks beside those of one process: `python -m benchmarks processes`.

Two ranks of one thread each beside one process of two threads, or as many ranks as there are GPUs. Rates are medians of
rounds that take turns, each in new processes.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys

import torch
from torch.optim import AdamW
from torch.optim.lr_scheduler import MultiStepLR

from benchmarks.measure import seconds
from benchmarks.run import build
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

ROUNDS, REPETITIONS = 3, 3
IMAGES = {"cpu": 24, "cuda": 300}  # of a training step
QUERIES = {"cpu": 8, "cuda": 600}  # of 100 candidates each


def rates(device_type: str) -> dict[str, float]:
    """Images trained and pairs scored a second by the ranks of this job."""
    silence_other_ranks()
    with process_group(5, device_type == "cpu"):
        device = torch.device("cpu") if device_type == "cpu" else own_gpu()
        dtype, model = set_precision(None, device), build().to(device)
        optimizer = AdamW(model.parameters(), 1e-4, fused=True)
        state = TrainingState.new(model, optimizer, MultiStepLR(optimizer, [9]), dtype)
        step, size = rerank_step(model, MeanOverPairs(BinaryCrossEntropyWithLogits()), dtype), IMAGES[device_type]
        images = torch.randint(0, 256, (size, 3, 224, 224), dtype=torch.uint8)[shard_slice(size, 3)]
        loader = [(images, torch.arange(len(images)) // 2, torch.arange(len(images)))]
        queries, scorers = QUERIES[device_type], [matcher_for(model, torch.float32)]
        maps = torch.randn(queries + 100, 128, 7, 7)
        neighbours = torch.stack([torch.randperm(len(maps))[:100] for _ in range(queries)])

        def train() -> None:
            train_epoch(state, step, loader)

        def score() -> None:
            pair_scores(model.eval(), maps[:queries], maps, neighbours, scorers)

        training, scoring = (
            statistics.median([seconds(work, device) for _ in range(1 + REPETITIONS)][1:]) for work in (train, score)
        )
        return {"training, images/s": size / training, "scoring, pairs/s": neighbours.numel() / scoring}


def rates_of_job(ranks: int, threads: int, device_type: str) -> dict[str, float]:
    """The rates of a new job."""
    launch = ("-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}")
    command = [sys.executable, *launch, "-m", "benchmarks", "processes", "--rates", "--device", device_type]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def scaling(device_type: str) -> list[dict[str, object]]:
    """A row for each number of ranks."""
    jobs = [(1, 2), (2, 1)]
    if device_type == "cuda":
        jobs = [(ranks, 1) for ranks in (1, 2, 4, 8) if ranks <= torch.cuda.device_count()]
    rounds = [[rates_of_job(*job, device_type) for job in jobs] for _ in range(ROUNDS)]
    rows = []
    for i, (ranks, threads) in enumerate(jobs):
        row: dict[str, object] = {"ranks": ranks, "threads of each": threads}
        for name in rounds[0][0]:
            row[name] = f"{statistics.median(measured[i][name] for measured in rounds):.1f}"
            ratio = statistics.median(measured[i][name] / measured[0][name] for measured in rounds)
            row[f"ratio, {name.partition(',')[0]}"] = f"{ratio:.2f}"
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rates", action="store_true", help="only print this job's rates")
    arguments = parser.parse_args()
    if not arguments.rates:
        print(markdown_table(scaling(arguments.device)))
        return
    measured = rates(arguments.device)
    if is_main_process():
        print(json.dumps(measured))
