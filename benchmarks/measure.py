"""Times and memory of variants that take turns, and the table they are printed in."""

import re
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import torch

from utils.runtime.memory import keep_freed_memory, release_freed_memory

PLAIN = "reference"


class Cost(NamedTuple):
    """What a variant takes."""

    times: list[float]  # in seconds, one of each repetition
    memory: int | None  # peak of the first run above the memory before it, in bytes; None if unknown

    @property
    def seconds(self) -> float:
        return statistics.median(self.times)

    def ratio_to(self, other: "Cost") -> float:
        """This time over another's: the median of the repetitions' ratios, as the machine's speed drifts."""
        return statistics.median(ours / theirs for ours, theirs in zip(self.times, other.times, strict=True))


class Stage(NamedTuple):
    """What is compared: `variants` are "reference", ours by name, and the limit of NAME as "limit NAME"."""

    title: str
    size: int
    unit: str
    variants: Mapping[str, Callable[[], object]]
    repetitions: int = 3
    warm_up: int = 1  # rounds that are not counted


def new_process(keeping: bool = False) -> ProcessPoolExecutor:
    """A new process to compute in; with `keeping` it keeps the memory that it frees, as the commands do."""
    return ProcessPoolExecutor(1, get_context("spawn"), keep_freed_memory if keeping else None)


def costs_of(prepare: Callable[[torch.device], Stage], device: torch.device) -> tuple[Stage, dict[str, Cost]]:
    """A stage, without its variants, and their costs; variants take turns.

    Memory is the GPU's on a GPU. On a CPU each variant has its own process, as memory that others have freed is had
    faster, and all but the reference keep the memory that they free.
    """
    with ExitStack() as stack:
        first = stack.enter_context(new_process())
        stage, names = first.submit(_begin, prepare, device).result()
        processes = dict.fromkeys(names, first)
        if device.type == "cpu":
            processes |= {name: stack.enter_context(new_process(keeping=True)) for name in names if name != PLAIN}
            for process in set(processes.values()) - {first}:
                process.submit(_begin, prepare, device).result()

        def take_turns() -> dict[str, tuple[float, int | None]]:
            return {name: processes[name].submit(_seconds_and_memory, name, device).result() for name in names}

        rounds = [take_turns() for _ in range(stage.warm_up + stage.repetitions)]
    times = {name: [measured[name][0] for measured in rounds[stage.warm_up :]] for name in names}
    return stage, {name: Cost(times[name], rounds[0][name][1]) for name in names}


_variants: dict[str, Callable[[], object]] = {}  # of this process


def _begin(prepare: Callable[[torch.device], Stage], device: torch.device) -> tuple[Stage, list[str]]:
    stage = prepare(device)
    _variants.update(stage.variants)
    return stage._replace(variants={}), list(_variants)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """The time that `work` takes, on a GPU to its end."""
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _seconds_and_memory(name: str, device: torch.device) -> tuple[float, int | None]:
    """Seconds, and the peak of memory above what was held before."""
    work = _variants[name]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        return seconds(work, device), torch.cuda.max_memory_allocated() - before
    release_freed_memory()  # so that it counts when it is taken again
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    except OSError:
        return seconds(work, device), None
    before = _resident("VmRSS")
    return seconds(work, device), _resident("VmHWM") - before


def _resident(figure: str) -> int:
    """A memory figure of this process, in bytes, of those in Linux's status file."""
    figures = dict(re.findall(r"(\w+):\s+(\d+) kB", Path("/proc/self/status").read_text()))
    return 1024 * int(figures[figure])


def table_row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def print_titles() -> None:
    titles = ("stage", "size", "reference", "ours", "ratio", "% of the limit", "memory, both")
    print(table_row(*titles), table_row(*["---"] * len(titles)), sep="\n", flush=True)


def print_rows(stage: Stage, costs: dict[str, Cost]) -> None:
    """A row of each of our variants."""
    plain = costs[PLAIN]
    for name, cost in costs.items():
        if name == PLAIN or name.startswith("limit"):
            continue
        limit = costs.get(f"limit {name}")
        row = table_row(
            f"{stage.title}, {name}",
            f"{stage.size:,}",
            f"{stage.size / plain.seconds:,.0f} {stage.unit}/s",
            f"{stage.size / cost.seconds:,.0f} {stage.unit}/s",
            f"{plain.ratio_to(cost):.2f}",
            f"{100 * limit.ratio_to(cost):.0f} %" if limit else "",
            "" if plain.memory is None or cost.memory is None else f"{plain.memory >> 20} / {cost.memory >> 20} MiB",
        )
        print(row, flush=True)
