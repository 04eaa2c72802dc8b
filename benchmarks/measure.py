"""Times of variants that take turns, and the table they are printed in."""

import statistics
import time
from collections.abc import Callable

import torch


def interleaved(variants: dict[str, Callable[[], object]], repetitions: int = 3) -> dict[str, float]:
    """Median seconds of each variant, run in turn after one warm-up each."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for repetition in range(repetitions + 1):
        for name, run in variants.items():
            start = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if repetition:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


class Table:
    """Rows of stage, size, straightforward, ours, ratio and share of the limit, printed as they come."""

    def __init__(self):
        print("| stage | size | straightforward | ours | ratio | share of the limit |\n|---|---|---|---|---|---|")

    def add(self, stage: str, size: int, unit: str, times: dict[str, float]) -> None:
        plain = times.pop("straightforward")
        for name, seconds in times.items():
            if not name.startswith("limit"):
                limit = times.get(f"limit {name}")
                share = f"{100 * limit / seconds:.0f} %" if limit else ""
                rates = f"{size / plain:,.0f} {unit}/s | {size / seconds:,.0f} {unit}/s"
                print(f"| {stage}, {name} | {size:,} | {rates} | {plain / seconds:.2f} | {share} |", flush=True)
