"""Which process of a job this is, as torchrun or a scheduler says: RANK of WORLD_SIZE, LOCAL_RANK on its machine.

A plain command is a job of one. Without torch, which not every command needs.
"""

import logging
import os
import sys
from pathlib import Path

from tqdm import tqdm


def is_one_of_several() -> bool:
    """Whether the job has more processes than this."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1


def rank() -> int:
    """The number of this process among the job's."""
    return int(os.environ.get("RANK", 0)) if is_one_of_several() else 0


def local_rank() -> int:
    """The number of this process among those on its machine, and of the GPU that it computes on."""
    return int(os.environ.get("LOCAL_RANK", 0)) if is_one_of_several() else 0


def local_processes() -> int:
    """How many of the job's processes are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if is_one_of_several() else 1


def is_first() -> bool:
    """Whether this is the process that logs, observes and writes."""
    return rank() == 0


def hush() -> None:
    """Leave what is said to the first process, but for errors."""
    if not is_first():
        logging.disable(logging.INFO)
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
        begin = tqdm.__init__
        tqdm.__init__ = lambda bar, *args, **kwargs: begin(bar, *args, **kwargs | {"disable": True})  # type: ignore
