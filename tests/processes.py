"""Forked processes within a test, alone or as ranks of one run."""

import os
import pickle
import socket
import sys
import traceback
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch

from utils.runtime.ranks import silence_other_ranks


def exit_codes(*works: Callable[[], object]) -> list[int | None]:
    """Fork a process for each of `works`, run them at once, and return their exit codes."""
    processes = [get_context("fork").Process(target=work) for work in works]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        process.kill()
    return [process.exitcode for process in processes]


def in_processes(number: int, work: Callable[[], object], folder: Path, port: int | None = None) -> list:
    """Run `work()` on `number` ranks and return their results; `port` is the store's, by default that of a new one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = port or free.getsockname()[1]
    folder.mkdir(parents=True, exist_ok=True)

    def run(rank: int) -> None:
        job = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": number, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in job.items()})
        sys.stderr = (folder / f"errors{rank}").open("w")
        torch.set_num_threads(1)
        silence_other_ranks()
        try:
            result = work()
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        (folder / f"result{rank}").write_bytes(pickle.dumps(result))
        os._exit(0)  # nothing of pytest's

    codes = exit_codes(*(partial(run, rank) for rank in range(number)))
    errors = "".join((folder / f"errors{rank}").read_text() for rank in range(number))
    assert codes == [0] * number, errors[-3000:]
    return [pickle.loads((folder / f"result{rank}").read_bytes()) for rank in range(number)]
