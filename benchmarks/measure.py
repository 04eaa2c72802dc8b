"""Times and memory of variants that take turns, and the table they are printed in."""

import ctypes
import re
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch

from utils.runtime.memory import keep_freed_memory

PLAIN = "straightforward"

Measured = TypeVar("Measured")


class Cost(NamedTuple):
    """What a variant takes."""

    times: list[float]  # in seconds, one of each repetition
    memory: int | None  # at most, in bytes above what was held before its first run; None where Linux does not tell

    @property
    def seconds(self) -> float:
        return statistics.median(self.times)

    def ratio_to(self, other: "Cost") -> float:
        """This time over another's: the median of the repetitions' ratios, as the machine's speed drifts."""
        return statistics.median(ours / theirs for ours, theirs in zip(self.times, other.times, strict=True))


class Stage(NamedTuple):
    """What is compared: `variants` are "straightforward", ours by a name each, and the limits, "limit " before it."""

    title: str
    size: int
    unit: str
    variants: Mapping[str, Callable[[], object]]
    repetitions: int = 3
    warm_up: int = 1  # rounds before those that count


def new_process(keeping: bool = False) -> ProcessPoolExecutor:
    """A new process to compute in; with `keeping` it keeps the memory that it frees, as the commands do."""
    return ProcessPoolExecutor(1, get_context("spawn"), keep_freed_memory if keeping else None)


def costs_of(prepare: Callable[[torch.device], Stage], device: torch.device) -> tuple[Stage, dict[str, Cost]]:
    """A stage, without its variants, and their costs; they take turns, and memory is the GPU's on a GPU.

    On a CPU each has a process of its own: what ran before changes how fast memory is had, and all but the
    straightforward keep what they free.
    """
    with ExitStack() as processes:
        plain_process = processes.enter_context(new_process())
        stage, names = plain_process.submit(_begin, prepare, device).result()
        process_of = dict.fromkeys(names, plain_process)
        if device.type == "cpu":
            own_processes = {
                name: processes.enter_context(new_process(keeping=True)) for name in names if name != PLAIN
            }
            for begun in [process.submit(_begin, prepare, device) for process in own_processes.values()]:
                begun.result()
            process_of |= own_processes

        def take_turns(measure: Callable[[str, torch.device], Measured]) -> dict[str, Measured]:
            return {name: process_of[name].submit(measure, name, device).result() for name in names}

        first_round = take_turns(_seconds_and_memory)
        rounds = [{name: seconds for name, (seconds, _) in first_round.items()}]
        rounds += [take_turns(_seconds) for _ in range(stage.warm_up + stage.repetitions - 1)]
    counted = rounds[stage.warm_up :]
    return stage, {name: Cost([seconds[name] for seconds in counted], first_round[name][1]) for name in names}


_variants: dict[str, Callable[[], object]] = {}  # of this process


def _begin(prepare: Callable[[torch.device], Stage], device: torch.device) -> tuple[Stage, list[str]]:
    stage = prepare(device)
    _variants.update(stage.variants)
    return stage._replace(variants={}), list(_variants)


def _seconds(name: str, device: torch.device) -> float:
    start = time.perf_counter()
    _variants[name]()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _seconds_and_memory(name: str, device: torch.device) -> tuple[float, int | None]:
    """Also the most memory held during the run, above what was held before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        return _seconds(name, device), torch.cuda.max_memory_allocated() - before
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what is free goes back, so that it counts when it is taken again
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = _resident("VmRSS")
    except (OSError, AttributeError):
        return _seconds(name, device), None
    return _seconds(name, device), _resident("VmHWM") - before


def _resident(figure: str) -> int:
    """A memory figure of this process, in bytes, of those in Linux's status file."""
    found = re.search(rf"{figure}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return 1024 * int(found[1])


def print_titles() -> None:
    titles = ("stage", "size", "straightforward", "ours", "ratio", "share of the limit", "memory, both")
    print("| " + " | ".join(titles) + " |\n" + "|---" * len(titles) + "|", flush=True)


def print_rows(stage: Stage, costs: dict[str, Cost]) -> None:
    """A row of each variant: stage, size, straightforward, ours, ratio, share of the limit and memory."""
    plain = costs[PLAIN]
    for name, cost in costs.items():
        if name == PLAIN or name.startswith("limit"):
            continue
        limit = costs.get(f"limit {name}")
        cells = (
            f"{stage.title}, {name}",
            f"{stage.size:,}",
            f"{stage.size / plain.seconds:,.0f} {stage.unit}/s",
            f"{stage.size / cost.seconds:,.0f} {stage.unit}/s",
            f"{plain.ratio_to(cost):.2f}",
            f"{100 * limit.ratio_to(cost):.0f} %" if limit else "",
            "" if plain.memory is None or cost.memory is None else f"{plain.memory >> 20} / {cost.memory >> 20} MiB",
        )
        print("| " + " | ".join(cells) + " |", flush=True)
