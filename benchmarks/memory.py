"""Peak memory on a CPU: of an evaluation of reranking at SOP's full size, of galleries beyond it, of training steps.

`python -m benchmarks memory` prints a table of each, `python -m benchmarks memory galleries` that one alone; each row
is measured in a process of its own. The evaluation's own code runs, on 60,502 blank images with 100 random neighbours
each, with its maps in memory and in a file (`features=DIR`). The network does one piece in 1,000 of its work, so that
minutes do instead of hours; for the others stand-ins answer at once, random local maps for embedding, a single product
for scoring. Chamfer similarities and rankings are all computed. What the network holds in memory while it works is thus
measured. The loader's workers, processes of their own, are not.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from itertools import product

import numpy as np
import torch
from torch import Tensor
from torch.optim import SGD
from torch.optim.lr_scheduler import MultiStepLR
from torch.utils.data import DataLoader, Dataset

from benchmarks.measure import new_process
from models.matcher import Matcher
from models.network import NetworkSettings, RerankingNetwork
from utils.evaluation import rank_candidates, report_rankings, score_candidates
from utils.retrieval.results import Labels
from utils.runtime.memory import peak_memory
from utils.training.loop import train_global, train_rerank
from utils.training.losses import BinaryCrossEntropyWithLogits, Contrastive

IMAGES, NEIGHBOURS, BATCH = 60_502, 100, 600
EVERY = 1000


class Images(Dataset):
    """Blank images (3, 224, 224), five of a class; a batch is in memory at a time."""

    def __init__(self, count: int):
        self.labels, self.paths = np.arange(count) // 5, range(count)
        self.blank = torch.full((3, 224, 224), 128, dtype=torch.uint8)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        return self.blank, int(self.labels[index]), index

    def fingerprint(self) -> dict[str, str]:
        return {"photos": "blank"}


class OccasionalMatcher(Matcher):
    """Scores every 1,000th lot of pairs by the matcher; the others get one product of their tokens' first numbers."""

    calls = 0

    def score(self, query_tokens: Tensor, candidate_tokens: Tensor) -> Tensor:
        self.calls += 1
        if self.calls % EVERY == 1:
            return super().score(query_tokens, candidate_tokens)
        return query_tokens[:, 0, 0].float() * candidate_tokens[:, 0, 0].float()


class OccasionalNetwork(RerankingNetwork):
    """Embeds every 1,000th lot of images; the others get random descriptors and maps."""

    def embedder(self, dtype: torch.dtype = torch.float32):
        embed, calls = super().embedder(dtype), 0

        def embed_or_draw(images: Tensor) -> tuple[Tensor, Tensor]:
            nonlocal calls
            calls += 1
            if calls % EVERY == 1:
                return embed(images)
            return torch.randn(len(images), 128), torch.randn(len(images), 128, 7, 7).to(dtype)

        return embed_or_draw


def measure(dtype: torch.dtype, folder: str | None = None, images: int = IMAGES) -> tuple[int, int, float]:
    """Bytes of the local maps, the process's peak resident bytes, and seconds, of an evaluation in `dtype`; with a
    folder, maps are kept in files of it."""
    start = time.perf_counter()
    torch.manual_seed(0)
    model = OccasionalNetwork(1000, NetworkSettings(pretrained=False, normalize=True))
    model.matcher = OccasionalMatcher()
    neighbours = torch.randint(images, (images, NEIGHBOURS))
    labels = Labels(np.arange(images) // 5, np.arange(images) // 5, True)
    candidates = score_candidates(model, neighbours, NEIGHBOURS, DataLoader(Images(images), BATCH), None, dtype, folder)
    with redirect_stdout(sys.stderr):  # what it says is no row of the table
        rankings = rank_candidates(candidates, labels, None)
        report_rankings(rankings, rankings.measures(labels, [1, 10, 100]), [1, 10, 100], {})
    return images * 128 * 7 * 7 * dtype.itemsize, peak_memory(), time.perf_counter() - start


def measure_training(task: str, batch: int, micro_batch: int | None) -> int:
    """Peak resident bytes of a process during two steps on `batch` blank images, above what it held before."""
    torch.manual_seed(0)
    model = RerankingNetwork(1000, NetworkSettings(pretrained=False, normalize=True))
    pixels, labels = torch.full((batch, 3, 224, 224), 128, dtype=torch.uint8), torch.arange(batch) // 2
    train, loss = {
        "global": (train_global, Contrastive()),
        "rerank": (train_rerank, BinaryCrossEntropyWithLogits()),
    }[task]
    optimizer = SGD(model.parameters(), 1e-3)
    loader, scheduler = [(pixels, labels, torch.arange(batch))] * 2, MultiStepLR(optimizer, [1000])
    before = peak_memory()
    train(model, loader, loss, optimizer, scheduler, 0, micro_batch=micro_batch)  # type: ignore[operator]
    return peak_memory() - before


def apart(measured: Callable, *arguments):
    """What a function returns in a new process."""
    with new_process(keeping=True) as process:
        return process.submit(measured, *arguments).result()


def print_evaluations() -> None:
    print(f"{IMAGES:,} images, {NEIGHBOURS} neighbours each, torch {torch.__version__}\n")
    print("| local maps | one copy of them | peak memory | besides one copy | time |\n|---|---|---|---|---|")
    for dtype, place in product((torch.float32, torch.bfloat16), ("in memory", "in a file")):
        with tempfile.TemporaryDirectory() as folder:
            maps, peak, seconds = apart(measure, dtype, folder if place == "in a file" else None)
        besides = f"{(peak - maps) / 1e9:.2f} GB" if place == "in memory" else ""
        name = f"{str(dtype).removeprefix('torch.')}, {place}"
        print(f"| {name} | {maps / 1e9:.2f} GB | {peak / 1e9:.2f} GB | {besides} | {seconds:.0f} s |", flush=True)


def print_trainings() -> None:
    print("\n| training | batch | micro_batch | memory of a step |\n|---|---|---|---|")
    for task, (batch, micro_batch) in product(("global", "rerank"), ((12, None), (48, None), (48, 12), (96, 12))):
        memory = apart(measure_training, task, batch, micro_batch)
        print(f"| {task} | {batch} | {micro_batch} | {memory / 1e9:.2f} GB |", flush=True)


def main() -> None:
    print_evaluations()
    print_trainings()
