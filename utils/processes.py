"""The processes of one job, one a device: how they share work (`utils.launch`: which one this is).

All work on one batch, or one evaluation: each takes its share of rows, and rows are exchanged by `torch.distributed`,
between GPUs by NCCL and between CPUs by gloo.
"""

import re
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import Tensor, nn

from utils.errors import InputError, ReportedError
from utils.launch import is_distributed, is_main_process, local_rank, rank
from utils.signals import Interrupted, coalesce_signals, raise_pending_signal, signal_with_parent

Piece = TypeVar("Piece")
Said = TypeVar("Said")

BUCKET = 25 << 20  # bytes of gradients that are exchanged at a time
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


def barrier() -> None:
    """Wait until all processes are here, which may be at work for hours: an end is noticed, silence is not."""
    if world_size() > 1:
        dist.barrier(_long_wait_group)


def synchronised(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """This process's pieces of work. All processes wait for each other before the first one, and then meet before each
    piece and at the end: PeerError for one that is silent."""
    barrier()
    own = iter(pieces)
    while any_rank((piece := next(own, None)) is not None):
        if piece is not None:
            yield piece


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


def shard_slice(rows: int, group: int = 1) -> slice:
    """This process's part of so many rows, those of a group together; shares stand in the order of processes."""
    if world_size() == 1:
        return slice(0, rows)
    groups = -(-rows // group)
    start, stop = (min(rows, group * (groups * number // world_size())) for number in (rank(), rank() + 1))
    return slice(start, stop)


def all_reduce_int(rows: int) -> int:
    """The sum of all processes' numbers."""
    return sum(_all_gather_int(rows)) if world_size() > 1 else rows


def all_gather_rows(part: Tensor) -> Tensor:
    """The rows of all processes, in order of rank: (n, ...) of parts (m, ...), to the last bit."""
    if world_size() == 1:
        return part
    numbers = _all_gather_int(len(part))
    rows = part.new_empty((sum(numbers), *part.shape[1:]))
    works = []
    for sender, piece in enumerate(rows.split(numbers)):
        if sender == rank():
            piece.copy_(part)
        if piece.numel():
            works.append(dist.broadcast(piece.view(torch.uint8), sender, async_op=True))
    for work in works:
        work.wait()  # type: ignore[union-attr]
    return rows


def local_rows(rows: int) -> slice:
    """Where this process's rows, so many, stand in `all_gather_rows`."""
    if world_size() == 1:
        return slice(0, rows)
    start = sum(_all_gather_int(rows)[: rank()])
    return slice(start, start + rows)


def all_reduce_sum(value: Tensor) -> Tensor:
    """The sum of all processes' tensors, all of one shape."""
    return all_gather_rows(value[None]).sum(dim=0)


def any_rank(flag: bool) -> bool:
    """Whether it is so in any process."""
    return all_reduce_int(flag) > 0


def all_gather_object(value: Said) -> list[Said]:
    """Each process's value, in order of rank."""
    if world_size() == 1:
        return [value]
    values: list = [None] * world_size()
    dist.all_gather_object(values, value, _long_wait_group)
    return values


def broadcast_from_rank0(make: Callable[[], Said]) -> Said:
    """What `make` returns in the first process, which alone calls it."""
    said = [make() if is_main_process() else None]
    barrier()
    if world_size() > 1:
        dist.broadcast_object_list(said, device=torch.device("cpu"))
    return said[0]  # type: ignore[return-value]


@contextmanager
def local_rank0_first() -> Iterator[None]:
    """The first process of each machine goes through the block alone, then the others do."""
    if local_rank():
        barrier()
    yield
    if not local_rank():
        barrier()


def broadcast_model(model: nn.Module) -> None:
    """Give all processes the first one's weights and buffers."""
    if world_size() > 1:
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, 0)


def all_reduce_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Give all processes the sum of their gradients, some megabytes at a time; without one in any, there is none."""
    if world_size() == 1:
        return
    chosen = list(parameters)
    has_gradient = torch.tensor([parameter.grad is not None for parameter in chosen], dtype=torch.uint8)
    dist.all_reduce(has_gradient, dist.ReduceOp.MAX)
    chosen = [parameter for parameter, has in zip(chosen, has_gradient.tolist(), strict=True) if has]
    for parameter in chosen:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    for bucket in _buckets(chosen):
        gradients: list[Tensor] = [parameter.grad for parameter in bucket]  # type: ignore[misc]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))


def _buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    bucket: list[nn.Parameter] = []
    for parameter in parameters:
        bucket.append(parameter)
        if sum(held.nbytes for held in bucket) >= BUCKET:
            yield bucket
            bucket = []
    if bucket:
        yield bucket


def _all_gather_int(own: int) -> list[int]:
    """Each process's number."""
    numbers = [torch.zeros(1, dtype=torch.int64) for _ in range(world_size())]
    dist.all_gather(numbers, torch.tensor([int(own)]))
    return [int(number) for number in numbers]
