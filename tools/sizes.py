"""The fastest numbers of pairs and images to compute at a time: `python -m tools.sizes [--device cuda]`.

Prints the time of scoring and embedding by the size of a micro-batch, relative to the size in use: the median of the
ratios of all rounds.
"""

import argparse
import statistics
import time

import torch

from benchmarks.run import build
from utils.retrieval.pair_scoring import PAIRS_AT_ONCE, rerank
from utils.runtime.device import IMAGES_AT_ONCE
from utils.runtime.memory import keep_freed_memory

ROUNDS = 5
FACTORS = (0.25, 0.5, 1, 2, 4, 8)  # of the size in use


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(parser.parse_args().device)
    keep_freed_memory()
    model = build().eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    count = 4 if device.type == "cpu" else 1000
    maps, neighbours = torch.randn(count + 100, 128, 7, 7), torch.randint(count + 100, (count, 100))
    images = torch.randint(0, 256, (8 * IMAGES_AT_ONCE[device.type], 3, 224, 224), dtype=torch.uint8)
    embedder = model.embedder()

    def score(size: int) -> None:
        PAIRS_AT_ONCE[device.type] = size
        rerank(model, maps[:count], maps, neighbours)

    def embed(size: int) -> None:
        for batch in images.split(size):
            embedder(batch.to(device))[0].cpu()

    for title, run, size in (
        ("pairs", score, PAIRS_AT_ONCE[device.type]),
        ("images", embed, IMAGES_AT_ONCE[device.type]),
    ):
        seconds: dict[int, list[float]] = {int(factor * size): [] for factor in FACTORS}
        for _ in range(ROUNDS + 1):
            for other_size, times in seconds.items():
                start = time.perf_counter()
                run(other_size)
                times.append(time.perf_counter() - start)
        for other_size, times in seconds.items():
            ratios = [other / in_use for other, in_use in zip(times[1:], seconds[size][1:], strict=True)]
            print(f"{title} at a time: {other_size:6,}, time {statistics.median(ratios):.2f}", flush=True)


if __name__ == "__main__":
    main()
