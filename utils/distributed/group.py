"""The process group, one rank per device: NCCL between GPUs, gloo between CPUs; failures of peers as errors.

All ranks work on one batch, or one evaluation, by the collectives of `utils.distributed.collectives`."""

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

LONG_TIMEOUT = timedelta(days=1)  # of barriers around uneven work
SIGNAL_WINDOW = 5  # seconds in which a launcher passes on a signal
# in torch's message when a peer does not answer
PEER_FAILURE = re.compile(
    r"gloo|NCCL|TCPStore|[Cc]onnection (closed|reset|refused)|[Tt]imed out|[Ww]ait timeout|Broken pipe"
)
_long_wait_group: Any = None  # gloo with LONG_TIMEOUT; None outside of `process_group`


class PeerError(ReportedError):
    """Another rank has ended, or has not answered in time."""


def world_size() -> int:
    """The number of ranks; a process group that the caller of our library has made is ignored."""
    return 1 if _long_wait_group is None else dist.get_world_size()


@contextmanager
def process_group(timeout_minutes: float, on_cpu: bool) -> Iterator[None]:
    """Make the process group for the block, where the launcher has started several ranks.

    PeerError if another rank ends, or does not answer for `timeout_minutes`. InputError if the rendezvous fails.
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
            barrier()  # a rank that ends earlier would look like a failed one
            dist.destroy_process_group()
            _long_wait_group = None
    except Interrupted:
        if store is None:
            raise PeerError("a signal came before all ranks had met (see their own messages)") from None
        if _peer_has_died(store):
            raise PeerError("another rank has ended (see its own message)") from None
        raise


def _rendezvous(timeout: timedelta, backend: str) -> dist.Store:
    """Initialise the default group and the long-wait group; return the store that the ranks share."""
    global _long_wait_group
    store, rank_, size = next(dist.rendezvous("env://", timeout=timeout))
    store = dist.PrefixStore(_agree_on_restart_id(store, rank_, size, timeout), store)
    dist.init_process_group(backend, store=store, rank=rank_, world_size=size, timeout=timeout)
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
            raise InputError(f"the ranks cannot meet ({reason}): see docs/slurm.sh, or use torchrun") from error
        raise_pending_signal()
        if torch.cuda.is_initialized() and dist.is_initialized():
            dist.group.WORLD.abort()  # type: ignore[union-attr]  # the GPU may wait for the peer for ever
        raise PeerError(
            f"another rank has ended, or has not answered for timeout_minutes={timeout_minutes} (see its own message; "
            f"{reason})"
        ) from error


def is_peer_failure(error: Exception) -> bool:
    """Whether an error of torch means that a peer does not answer."""
    return bool(PEER_FAILURE.search(str(error)))


def long_wait_group() -> Any:
    """The gloo group with a one-day timeout, for collectives around work of uneven length."""
    return _long_wait_group


def barrier() -> None:
    """Wait for all ranks, up to a day: a rank that has died is noticed at once, a rank that hangs is not."""
    if world_size() > 1:
        dist.barrier(_long_wait_group)


def _agree_on_restart_id(store: dist.Store, rank_: int, size: int, timeout: timedelta) -> str:
    """An id that the ranks of this start agree on, and that no earlier start has.

    torchrun keeps one store through all restarts. Without an id, ranks may read the addresses of the last start from
    it, and wait for them, whatever the timeout (PyTorch issue 135712). Each machine counts its restarts by itself, so
    that their number cannot serve as the id.
    """
    token = uuid4().hex  # of rank 0: the id
    if rank_:
        store.set(f"started {rank_}", token)
        restart_id = store.get(f"id for {token}").decode()
        store.set(f"{restart_id} has {rank_}", "")
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


def _peer_has_died(store: dist.Store) -> bool:
    """Whether another rank has ended without a signal; this rank has had one, and tells the others so.

    A scheduler signals all ranks. After a rank has died, a launcher signals the others.
    """
    try:
        store.set(f"signalled {rank()}", "")
        for other in set(range(world_size())) - {rank()}:
            try:
                dist.isend(torch.empty(1), other)  # raises if the connection is closed
            except RuntimeError:
                if not store.check([f"signalled {other}"]):
                    return True
    except RuntimeError:  # the store is gone, too
        return True
    return False
