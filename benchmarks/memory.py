"""Peak memory on a CPU, of an evaluation of reranking at SOP's full size and of training steps in pieces.

`python -m benchmarks.memory` prints both, each row measured in a process of its own. The evaluation's own code runs, on
60,502 blank images with 100 random neighbours each. The network does one piece in 1,000 of its work, so that minutes do
instead of hours; for the others stand-ins answer at once, random local maps for embedding, a single product for
scoring. Chamfer similarities and rankings are all computed. What the network holds in memory while it works is thus
measured. The loader's workers, processes of their own, are not.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from itertools import product

import numpy as np
import torch
from torch import Tensor
from torch.optim import SGD
from torch.optim.lr_scheduler import MultiStepLR

from benchmarks.measure import new_process
from models.matcher import Matcher
from models.resnet import RerankingResNet
from utils.evaluation import Labels, rank_candidates, report_rankings, score_candidates
from utils.losses import BinaryCrossEntropyWithLogits, Contrastive
from utils.memory import peak_memory
from utils.training import train_global, train_rerank

IMAGES, NEIGHBOURS, BATCH = 60_502, 100, 600
EVERY = 1000


class Images:
    """Stands in for a loader: blank images (B, 3, 224, 224), five of a class; a batch is in memory at a time."""

    def __init__(self, count: int):
        self.dataset = range(count)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        blank = torch.full((BATCH, 3, 224, 224), 128, dtype=torch.uint8)
        for positions in torch.arange(len(self.dataset)).split(BATCH):
            yield blank[: len(positions)], positions // 5, positions


class OccasionalMatcher(Matcher):
    """Scores every 1,000th lot of pairs by the matcher; the others get one product of their tokens' first numbers."""

    calls = 0

    def score(self, query_tokens: Tensor, candidate_tokens: Tensor) -> Tensor:
        self.calls += 1
        if self.calls % EVERY == 1:
            return super().score(query_tokens, candidate_tokens)
        return query_tokens[:, 0, 0].float() * candidate_tokens[:, 0, 0].float()


class OccasionalNetwork(RerankingResNet):
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


def measure(dtype: torch.dtype, images: int = IMAGES) -> tuple[int, int, float]:
    """Bytes of the local maps, the process's peak resident bytes, and seconds, of an evaluation in `dtype`."""
    start = time.perf_counter()
    torch.manual_seed(0)
    model = OccasionalNetwork(1000, Matcher(), normalize=True)
    model.matcher = OccasionalMatcher()
    neighbours = torch.randint(images, (images, NEIGHBOURS))
    labels = Labels(np.arange(images) // 5, np.arange(images) // 5, True)
    candidates = score_candidates(model, neighbours, NEIGHBOURS, Images(images), None, dtype)
    with redirect_stdout(sys.stderr):  # what it says is no row of the table
        report_rankings(rank_candidates(candidates, labels, None), labels, [1, 10, 100], {})
    return images * 128 * 7 * 7 * dtype.itemsize, peak_memory(), time.perf_counter() - start


def measure_training(task: str, batch: int, micro_batch: int | None) -> int:
    """Peak resident bytes of a process during two steps on `batch` blank images, above what it held before."""
    torch.manual_seed(0)
    model = RerankingResNet(1000, Matcher(), normalize=True)
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


def main() -> None:
    print(f"{IMAGES:,} images, {NEIGHBOURS} neighbours each, torch {torch.__version__}\n")
    print("| local maps in | one copy of them | peak memory | besides one copy | time |\n|---|---|---|---|---|")
    for dtype in (torch.float32, torch.bfloat16):
        maps, peak, seconds = apart(measure, dtype)
        sizes = " | ".join(f"{size / 1e9:.2f} GB" for size in (maps, peak, peak - maps))
        print(f"| {str(dtype).removeprefix('torch.')} | {sizes} | {seconds:.0f} s |", flush=True)
    print("\n| training | batch | micro_batch | memory of a step |\n|---|---|---|---|")
    for task, (batch, micro_batch) in product(("global", "rerank"), ((12, None), (48, None), (48, 12), (96, 12))):
        memory = apart(measure_training, task, batch, micro_batch)
        print(f"| {task} | {batch} | {micro_batch} | {memory / 1e9:.2f} GB |", flush=True)


if __name__ == "__main__":
    main()
