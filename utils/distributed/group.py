"""The process group of a job, one rank a device: NCCL between GPUs, gloo between CPUs, and what a lost rank means.

All ranks work on one batch, or one evaluation; `utils.distributed.collectives` has what they exchange."""

import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from uuid import uuid4

import torch
import torch.distributed as dist

from utils.errors import InputError, ReportedError
from utils.runtime.ranks import is_distributed, rank
from utils.runtime.signals import Interrupted, coalesce_signals, raise_pending_signal, signal_with_parent

LONG_TIMEOUT = timedelta(days=1)  # for which processes may be at work, each on its share, before they meet again
SIGNAL_WINDOW = 5  # in which the launcher passes on a signal
# in what torch says where another process does not answer
PEER_FAILURE = re.compile(
    r"gloo|NCCL|TCPStore|[Cc]onnection (closed|reset|refused)|[Tt]imed out|[Ww]ait timeout|Broken pipe"
)
_long_wait_group: Any = None  # the group of all that is waited in while others may be at work, from when they have met


class PeerError(ReportedError):
    """Another process of the job has ended, or has not answered in time."""


def world_size() -> int:
    """How many processes the job has; a group that others have made, around our library, is none of ours."""
    return 1 if _long_wait_group is None else dist.get_world_size()


@contextmanager
def process_group(timeout_minutes: float, on_cpu: bool) -> Iterator[None]:
    """In the block the job's processes exchange rows.

    PeerError where another one ends, or is silent for so long. InputError where they cannot meet.
    """
    if not is_distributed():
        yield
        return
    global _long_wait_group
    signal_with_parent(signal.SIGTERM)
    coalesce_signals(SIGNAL_WINDOW)
    store = None
    try:
        with _reporting_peer_failures(timeout_minutes):
            store = _rendezvous(timedelta(minutes=timeout_minutes), "gloo" if on_cpu else "cpu:gloo,cuda:nccl")
            yield
            barrier()  # one that ends earlier would be missed
            dist.destroy_process_group()
            _long_wait_group = None
    except Interrupted:
        if store is None:
            raise PeerError("a signal came before the job's processes had met (see their own messages)") from None
        if _peer_has_died(store):
            raise PeerError("another process of the job has ended (see its own message)") from None
        raise


def _rendezvous(timeout: timedelta, backend: str) -> dist.Store:
    """Make the group of the job's processes; the store that they share."""
    global _long_wait_group
    store, number, processes = next(dist.rendezvous("env://", timeout=timeout))
    store = dist.PrefixStore(_agree_on_restart_id(store, number, processes, timeout), store)
    dist.init_process_group(backend, store=store, rank=number, world_size=processes, timeout=timeout)
    _long_wait_group = dist.new_group(backend="gloo", timeout=LONG_TIMEOUT)
    return store


@contextmanager
def _reporting_peer_failures(timeout_minutes: float) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if isinstance(error, ReportedError) or not (is_peer_failure(error) or not dist.is_initialized()):
            raise
        reason = str(error).splitlines()[0]
        if not is_peer_failure(error):
            raise InputError(
                f"the job's processes cannot meet ({reason}): see docs/slurm.sh, or use torchrun"
            ) from error
        raise_pending_signal()
        if torch.cuda.is_initialized() and dist.is_initialized():
            dist.group.WORLD.abort()  # type: ignore[union-attr]  # the GPU may wait for it, for ever
        raise PeerError(
            f"another process of the job has ended, or has not answered for timeout_minutes={timeout_minutes} (see its "
            f"own message; {reason})"
        ) from error


def is_peer_failure(error: Exception) -> bool:
    """Whether torch says by an error that another process does not answer."""
    return bool(PEER_FAILURE.search(str(error)))


def long_wait_group() -> Any:
    """The gloo group with a one-day timeout, for what is waited in while ranks do work of uneven length."""
    return _long_wait_group


def barrier() -> None:
    """Wait until all processes are here, which may be at work for hours: an end is noticed, silence is not."""
    if world_size() > 1:
        dist.barrier(_long_wait_group)


def _agree_on_restart_id(store: dist.Store, number: int, processes: int, timeout: timedelta) -> str:
    """A name that the processes of this start of the job agree on, and none of an earlier one has.

    torchrun keeps one store through all restarts. Without a name, processes may read where those of the last start
    were listening, and wait for them, whatever the timeout (PyTorch issue 135712). Restarts are counted by each
    machine for itself, so that their number is none.
    """
    own = uuid4().hex
    if number:
        store.set(f"started {number}", own)
        name = store.get(f"name for {own}").decode()
        store.set(f"{name} has {number}", "")
        return name
    deadline = time.monotonic() + timeout.total_seconds()
    while not store.check([f"{own} has {other}" for other in range(1, processes)]):
        for other in range(1, processes):
            if store.check([f"started {other}"]):  # perhaps by one of an earlier start, which does not answer
                store.set(f"name for {store.get(f'started {other}').decode()}", own)
        if time.monotonic() > deadline:
            raise ValueError("Timed out: not all processes have started")
        time.sleep(0.02)
    return own


def _peer_has_died(store: dist.Store) -> bool:
    """Whether another process has ended by itself; this one has a signal, and tells the others so.

    A scheduler signals all processes; where one is lost, a launcher signals those that are left.
    """
    try:
        store.set(f"signalled {rank()}", "")
        for other in set(range(world_size())) - {rank()}:
            try:
                dist.isend(torch.empty(1), other)  # raises where there is no connection any more
            except RuntimeError:
                if not store.check([f"signalled {other}"]):
                    return True
    except RuntimeError:  # the store, too, is gone
        return True
    return False
