"""Jobs of several processes within a test."""

import os
import pickle
import socket
import sys
import traceback
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import torch

from utils.launch import hush


def in_processes(number: int, work: Callable[[], object], folder: Path, port: int | None = None) -> list:
    """What `work()` returns in each of so many processes of one job, whose store is at `port`, or its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = port or free.getsockname()[1]
    folder.mkdir(parents=True, exist_ok=True)

    def run(rank: int) -> None:
        job = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": number, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in job.items()})
        sys.stderr = (folder / f"errors{rank}").open("w")
        torch.set_num_threads(1)
        hush()
        try:
            result = work()
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        (folder / f"result{rank}").write_bytes(pickle.dumps(result))
        os._exit(0)  # nothing of pytest's

    processes = [get_context("fork").Process(target=run, args=(rank,)) for rank in range(number)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        process.kill()
    errors = "".join((folder / f"errors{rank}").read_text() for rank in range(number))
    assert all(process.exitcode == 0 for process in processes), errors[-3000:]
    return [pickle.loads((folder / f"result{rank}").read_bytes()) for rank in range(number)]
