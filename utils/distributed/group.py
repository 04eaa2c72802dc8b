"""The process group, one rank per device: NCCL between GPUs, gloo between CPUs.

All ranks work on one batch, or one evaluation, by the collectives of `utils.distributed.collectives`. If a rank dies,
or does not answer in time, the collectives of the others raise torch's RuntimeError; the launcher ends them, and
reports the rank that failed first."""

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
from utils.runtime.ranks import is_distributed
from utils.runtime.signals import raise_pending_signal, signal_with_parent

LONG_TIMEOUT = timedelta(days=1)  # of barriers around uneven work
_long_wait_group: Any = None  # gloo with LONG_TIMEOUT; None outside of `process_group`


def world_size() -> int:
    """The number of ranks; a process group that the caller of our library has made is ignored."""
    return 1 if _long_wait_group is None else dist.get_world_size()


@contextmanager
def process_group(timeout_minutes: float, on_cpu: bool) -> Iterator[None]:
    """Make the process group for the block, where the launcher has started several ranks.

    Collectives raise RuntimeError if another rank ends, or does not answer for `timeout_minutes`. InputError if the
    rendezvous fails.
    """
    if not is_distributed():
        yield
        return
    global _long_wait_group
    signal_with_parent(signal.SIGTERM)
    try:
        _rendezvous(timedelta(minutes=timeout_minutes), "gloo" if on_cpu else "cpu:gloo,cuda:nccl")
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"the ranks cannot meet ({reason}): see docs/slurm.sh, or use torchrun") from error
    try:
        yield
    except RuntimeError as error:
        if torch.cuda.is_initialized() and not isinstance(error, ReportedError):
            dist.group.WORLD.abort()  # type: ignore[union-attr]  # the GPU may wait for the peer for ever
        raise_pending_signal()  # by which the peer may have ended
        raise
    barrier()  # the peers of a rank that ends earlier fail
    dist.destroy_process_group()
    _long_wait_group = None


def _rendezvous(timeout: timedelta, backend: str) -> None:
    """Initialise the default group and the long-wait group."""
    global _long_wait_group
    store, rank, size = next(dist.rendezvous("env://", timeout=timeout))
    store = dist.PrefixStore(_agree_on_restart_id(store, rank, size, timeout), store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    _long_wait_group = dist.new_group(backend="gloo", timeout=LONG_TIMEOUT)


def long_wait_group() -> Any:
    """The gloo group with a one-day timeout, for collectives around work of uneven length."""
    return _long_wait_group


def barrier() -> None:
    """Wait for all ranks, up to a day: a rank that has died is noticed at once, a rank that hangs is not."""
    if world_size() > 1:
        dist.barrier(_long_wait_group)


def _agree_on_restart_id(store: dist.Store, rank: int, size: int, timeout: timedelta) -> str:
    """An id that the ranks of this start agree on, and that no earlier start has.

    torchrun keeps one store through all restarts. Without an id, ranks may read the addresses of the last start from
    it, and wait for them, whatever the timeout (PyTorch issue 135712). Each machine counts its restarts by itself, so
    that their number cannot serve as the id.
    """
    token = uuid4().hex  # of rank 0: the id
    if rank:
        store.set(f"started {rank}", token)
        restart_id = store.get(f"id for {token}").decode()
        store.set(f"{restart_id} has {rank}", "")
        return restart_id
    deadline = time.monotonic() + timeout.total_seconds()
    while not store.check([f"{token} has {other}" for other in range(1, size)]):
        for other in range(1, size):
            if store.check([f"started {other}"]):  # perhaps by a rank of an earlier start, which does not answer
                store.set(f"id for {store.get(f'started {other}').decode()}", token)
        if time.monotonic() > deadline:
            raise ValueError("Timed out: not all ranks have started")
        time.sleep(0.02)
    return token
