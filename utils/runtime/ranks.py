"""Which process of a job this is, as torchrun or a scheduler says: RANK of WORLD_SIZE, LOCAL_RANK on its machine.

A plain command is a job of one. Without torch, which not every command needs.
"""

import logging
import math
import os
import sys
from pathlib import Path

from tqdm import tqdm

from utils.errors import InputError


def _variable(name: str, least: int, most: float = math.inf) -> int:
    """A number of the environment, `least` where it is unset or empty; InputError for any other text."""
    text = os.environ.get(name) or str(least)
    if not (text.isascii() and text.isdecimal() and least <= int(text) <= most):
        numbers = f"from {least}" if most == math.inf else f"from {least} to {most}"
        raise InputError(
            f"the environment has {name}={text!r}, but launchers such as torchrun give a whole number {numbers} there: "
            f"unset {name} for a start of one process"
        )
    return int(text)


def _world_size() -> int:
    return _variable("WORLD_SIZE", 1)


def is_distributed() -> bool:
    """Whether the job has more processes than this; InputError, here and below, for an environment that is not so."""
    return _world_size() > 1


def rank() -> int:
    """The number of this process among the job's."""
    return _variable("RANK", 0, _world_size() - 1) if is_distributed() else 0


def local_rank() -> int:
    """The number of this process among those on its machine, and of the GPU that it computes on."""
    return _variable("LOCAL_RANK", 0, _world_size() - 1) if is_distributed() else 0


def local_world_size() -> int:
    """How many of the job's processes are on this machine."""
    return _variable("LOCAL_WORLD_SIZE", 1, _world_size()) if is_distributed() else 1


def is_main_process() -> bool:
    """Whether this is the process that logs, observes and writes."""
    return rank() == 0


def silence_other_ranks() -> None:
    """Leave what is said to the first process, but for errors."""
    if not is_main_process():
        logging.disable(logging.INFO)
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
        begin = tqdm.__init__
        tqdm.__init__ = lambda bar, *args, **kwargs: begin(bar, *args, **kwargs | {"disable": True})  # type: ignore
