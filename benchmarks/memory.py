"""Peak memory of an evaluation of reranking on a CPU, at SOP's full size: `python -m benchmarks.memory`.

The evaluation's own code runs, on 60,502 blank images with 100 random neighbours each, in a process for each number
format. The network does one piece in 1,000 of its work, so that minutes do instead of hours; for the others stand-ins
answer at once, random local maps for embedding, a single product for scoring. What the network holds in memory while it
works is thus measured. The loader's workers, processes of their own, are not.
"""

import resource
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
from torch import Tensor

from models.matcher import Matcher
from models.resnet import RerankingResNet
from utils.training import evaluate_rerank

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
    """Scores every 1,000th lot of pairs by the matcher; the others get one product of their maps' first numbers."""

    calls = 0

    def forward(self, src_global: Tensor | None, src_local: Tensor, tgt_global: Tensor | None, tgt_local: Tensor):
        self.calls += 1
        if self.calls % EVERY == 1:
            return super().forward(src_global, src_local, tgt_global, tgt_local)
        return src_local[:, 0, 0, 0].float() * tgt_local[:, 0, 0, 0].float()


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
    evaluate_rerank(model, neighbours, Images(images), None, [1, 10, 100], dtype)
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return images * 128 * 7 * 7 * dtype.itemsize, peak, time.perf_counter() - start


def main() -> None:
    print(f"{IMAGES:,} images, {NEIGHBOURS} neighbours each, torch {torch.__version__}\n")
    print("| local maps in | one copy of them | peak memory | besides one copy | time |\n|---|---|---|---|---|")
    for dtype in (torch.float32, torch.bfloat16):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            maps, peak, seconds = process.submit(measure, dtype).result()
        sizes = " | ".join(f"{size / 1e9:.2f} GB" for size in (maps, peak, peak - maps))
        print(f"| {str(dtype).removeprefix('torch.')} | {sizes} | {seconds:.0f} s |", flush=True)


if __name__ == "__main__":
    main()
