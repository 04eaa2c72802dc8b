"""The rank of this process and the world size, from the environment that torchrun or a scheduler sets.

A plain command is rank 0 of a world of 1. Without torch, which not every command needs.
"""

import logging
import math
import os
import sys
from pathlib import Path

from tqdm import tqdm

from utils.errors import InputError


def _variable(name: str, minimum: int, maximum: float = math.inf) -> int:
    """An integer of the environment, `minimum` if it is unset or empty; InputError for other text."""
    text = os.environ.get(name) or str(minimum)
    if not (text.isascii() and text.isdecimal() and minimum <= int(text) <= maximum):
        numbers = f"from {minimum}" if maximum == math.inf else f"from {minimum} to {maximum}"
        raise InputError(
            f"the environment has {name}={text!r}, but launchers such as torchrun give a whole number {numbers} there: "
            f"unset {name} for a start of one process"
        )
    return int(text)


def _world_size() -> int:
    return _variable("WORLD_SIZE", 1)


def is_distributed() -> bool:
    """Whether there are other ranks. InputError, here and below, for invalid numbers in the environment."""
    return _world_size() > 1


def rank() -> int:
    """The rank of this process, from 0."""
    return _variable("RANK", 0, _world_size() - 1) if is_distributed() else 0


def local_rank() -> int:
    """The rank of this process on its machine, and the number of its GPU."""
    return _variable("LOCAL_RANK", 0, _world_size() - 1) if is_distributed() else 0


def local_world_size() -> int:
    """The number of ranks on this machine."""
    return _variable("LOCAL_WORLD_SIZE", 1, _world_size()) if is_distributed() else 1


def is_main_process() -> bool:
    """Whether this is rank 0, which prints, observes and writes."""
    return rank() == 0


def silence_other_ranks() -> None:
    """Silence stdout, logging and progress bars of all ranks but 0; errors are still printed."""
    if not is_main_process():
        logging.disable(logging.INFO)
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
        init = tqdm.__init__
        tqdm.__init__ = lambda bar, *args, **kwargs: init(bar, *args, **kwargs | {"disable": True})  # type: ignore
