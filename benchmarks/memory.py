"""Peak memory of an evaluation of reranking at SOP's full size, on a CPU: `python -m benchmarks memory`.

The evaluation's own code runs on 60,502 blank images with 100 random neighbours each, with its maps in memory and in a
file (`features=DIR`); each row is measured in a new process. The network computes every 1,000th batch, so that minutes
do instead of hours; for the others, random maps stand in for embedding and one product for scoring. Chamfer
similarities and rankings are all computed. The loader's workers, processes of their own, are not measured.
"""

import sys
import tempfile
import time
from contextlib import redirect_stdout
from itertools import product

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.measure import new_process
from models.matcher import Matcher
from models.network import RerankingNetwork
from models.settings import NetworkSettings
from utils.evaluation import score_candidates
from utils.retrieval.rankings import rank_candidates, report_rankings
from utils.retrieval.results import Labels
from utils.runtime.memory import peak_memory

IMAGES, NEIGHBOURS, BATCH = 60_502, 100, 600
COMPUTED_EVERY = 1000  # batches


class BlankImages(Dataset):
    """Blank images (3, 224, 224), five of a class, in the memory of one."""

    def __init__(self, count: int):
        self.labels, self.paths = np.arange(count) // 5, range(count)
        self.pixels = torch.full((3, 224, 224), 128, dtype=torch.uint8)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        return self.pixels, int(self.labels[index]), index

    def fingerprint(self) -> dict[str, str]:
        return {"photos": "blank"}


class SparseMatcher(Matcher):
    """Computes every 1,000th batch of pairs; the scores of others are products of their tokens' first numbers."""

    calls = 0

    def score(self, query_tokens: Tensor, candidate_tokens: Tensor) -> Tensor:
        self.calls += 1
        if self.calls % COMPUTED_EVERY == 1:
            return super().score(query_tokens, candidate_tokens)
        return query_tokens[:, 0, 0].float() * candidate_tokens[:, 0, 0].float()


class SparseNetwork(RerankingNetwork):
    """Computes every 1,000th batch of images; the descriptors and maps of others are random."""

    def embedder(self, dtype: torch.dtype = torch.float32):
        embed, calls = super().embedder(dtype), 0

        def embed_every_1000th(images: Tensor) -> tuple[Tensor, Tensor]:
            nonlocal calls
            calls += 1
            if calls % COMPUTED_EVERY == 1:
                return embed(images)
            return torch.randn(len(images), 128), torch.randn(len(images), 128, 7, 7).to(dtype)

        return embed_every_1000th


def measure(dtype: torch.dtype, folder: str | None = None, images: int = IMAGES) -> tuple[int, int, float]:
    """Bytes of the local maps, peak resident bytes of the process, and seconds, of an evaluation in `dtype`.

    `folder`: where maps are kept; None: in memory.
    """
    start = time.perf_counter()
    torch.manual_seed(0)
    model = SparseNetwork(1000, NetworkSettings(pretrained=False, normalize=True))
    model.matcher = SparseMatcher()
    neighbours = torch.randint(images, (images, NEIGHBOURS))
    labels = Labels(np.arange(images) // 5, np.arange(images) // 5, True)
    loader = DataLoader(BlankImages(images), BATCH)
    candidates = score_candidates(model, neighbours, NEIGHBOURS, loader, None, dtype, folder)
    with redirect_stdout(sys.stderr):  # stdout has the table
        rankings = rank_candidates(candidates, labels, None)
        ks = [1, 10, 100]
        report_rankings(rankings, rankings.measures(labels, ks), labels.queries, ks, {})
    return images * 128 * 7 * 7 * dtype.itemsize, peak_memory(), time.perf_counter() - start


def main() -> None:
    print(f"{IMAGES:,} images, {NEIGHBOURS} neighbours each, torch {torch.__version__}\n")
    print("| local maps | one copy of them | peak memory | besides one copy | time |\n|---|---|---|---|---|")
    for dtype, is_stored in product((torch.float32, torch.bfloat16), (False, True)):
        with tempfile.TemporaryDirectory() as folder, new_process(keeping=True) as process:
            maps, peak, seconds = process.submit(measure, dtype, folder if is_stored else None).result()
        besides = "" if is_stored else f"{(peak - maps) / 1e9:.2f} GB"
        name = f"{str(dtype).removeprefix('torch.')}, {'in a file' if is_stored else 'in memory'}"
        print(f"| {name} | {maps / 1e9:.2f} GB | {peak / 1e9:.2f} GB | {besides} | {seconds:.0f} s |", flush=True)
