"""Times and memory of variants that take turns, and the table they are printed in."""

import ctypes
import re
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import torch


class Cost(NamedTuple):
    """What a variant takes."""

    times: list[float]  # in seconds, one of each repetition
    memory: int | None  # at most, in bytes above what was held before its first run; None where Linux does not tell

    @property
    def seconds(self) -> float:
        return statistics.median(self.times)

    def over(self, other: "Cost") -> float:
        """This time over another's: the median of the repetitions' ratios, as the machine's speed drifts."""
        return statistics.median(mine / its for mine, its in zip(self.times, other.times, strict=True))


def interleaved(variants: dict[str, Callable[[], object]], repetitions: int = 3, warm_up: int = 1) -> dict[str, Cost]:
    """The cost of each variant, run in turn, `warm_up` rounds before those that count; memory is the GPU's on a GPU."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    memory = {name: _memory_of(run) for name, run in variants.items()}
    for _ in range(warm_up - 1 + repetitions):
        for name, run in variants.items():
            start = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - start)
    return {name: Cost(times[name][warm_up - 1 :], memory[name]) for name in variants}


def _memory_of(run: Callable[[], object]) -> int | None:
    """Run once; the most memory held meanwhile, above what was held before."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what is free goes back, so that it counts when it is taken again
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = _resident("VmRSS")
    except (OSError, AttributeError):
        run()
        return None
    run()
    return _resident("VmHWM") - before


def _resident(what: str) -> int:
    """A memory figure of this process, in bytes, of those in Linux's status file."""
    found = re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return 1024 * int(found[1])


def print_titles() -> None:
    titles = ("stage", "size", "straightforward", "ours", "ratio", "share of the limit", "memory, both")
    print("| " + " | ".join(titles) + " |\n" + "|---" * len(titles) + "|", flush=True)


def print_rows(stage: str, size: int, unit: str, costs: dict[str, Cost]) -> None:
    """A row of each variant: stage, size, straightforward, ours, ratio, share of the limit and memory."""
    plain = costs.pop("straightforward")
    for name, cost in costs.items():
        if name.startswith("limit"):
            continue
        limit = costs.get(f"limit {name}")
        cells = (
            f"{stage}, {name}",
            f"{size:,}",
            f"{size / plain.seconds:,.0f} {unit}/s",
            f"{size / cost.seconds:,.0f} {unit}/s",
            f"{plain.over(cost):.2f}",
            f"{100 * limit.over(cost):.0f} %" if limit else "",
            "" if plain.memory is None or cost.memory is None else f"{plain.memory >> 20} / {cost.memory >> 20} MiB",
        )
        print("| " + " | ".join(cells) + " |", flush=True)


def apart(measured: Callable, *arguments):
    """What a function returns in a new process: what ran before changes how fast memory is had."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(measured, *arguments).result()
