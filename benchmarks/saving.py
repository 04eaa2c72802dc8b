"""What `last.pt` costs a training of ResNet-50: `python -m benchmarks saving`.

Steps and saves take turns, and medians count. It is saved every ten minutes, and after each epoch: the shares are of
ten minutes, and of an epoch of SOP's training images.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import MultiStepLR

from benchmarks.run import build
from sop.ingredient import SOP_TRAINING_IMAGES
from utils.runtime.precision import set_precision
from utils.text import markdown_table
from utils.training.loop import train_epoch
from utils.training.losses import BinaryCrossEntropyWithLogits, Contrastive, MeanOverPairs
from utils.training.resume import LAST, TrainingFiles
from utils.training.state import TrainingState
from utils.training.steps import global_step, rerank_step

REPETITIONS = 5
IMAGES = {"cpu": 24, "cuda": 300}  # of a step


def seconds(run: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def cost(task: str, device: torch.device, folder: Path) -> dict[str, object]:
    """A row of the table."""
    dtype = set_precision(None, device)
    model = build(freeze_backbone=task == "rerank, frozen backbone")
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer: Optimizer
    if task == "global":
        optimizer, step = SGD(model.parameters(), 1e-3, 0.9), global_step(model, Contrastive(0.5), dtype, None)
    else:
        optimizer, loss = AdamW(model.parameters(), 1e-4), MeanOverPairs(BinaryCrossEntropyWithLogits())
        step = rerank_step(model, loss, dtype, None, embedded=False)
    state = TrainingState.new(model, optimizer, MultiStepLR(optimizer, [9]), dtype)
    files, count = TrainingFiles(folder / "c.pt"), IMAGES[device.type]
    images = torch.randint(0, 256, (count, 3, 224, 224), dtype=torch.uint8)
    loader = [(images, torch.arange(count) // 2, torch.arange(count))]
    rounds = [
        (seconds(lambda: train_epoch(state, step, loader), device), seconds(lambda: files.save_last(state), device))
        for _ in range(1 + REPETITIONS)
    ][1:]
    stepping, saving = (statistics.median(times) for times in zip(*rounds, strict=True))
    epoch = stepping * SOP_TRAINING_IMAGES / count
    return {
        "training": task,
        "images a second": f"{count / stepping:.1f}",
        "last.pt": f"{(folder / LAST).stat().st_size / 1e6:.0f} MB",
        "seconds to save": f"{saving:.2f}",
        "share of ten minutes": f"{100 * saving / 600:.2f} %",
        "share of an epoch": f"{100 * saving / epoch:.3f} %",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(parser.parse_args().device)
    with tempfile.TemporaryDirectory(dir=".") as folder:  # on the disk of the project, /tmp may be memory
        tasks = ("global", "rerank", "rerank, frozen backbone")
        print(markdown_table([cost(task, device, Path(folder)) for task in tasks]))
