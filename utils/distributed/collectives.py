"""Collectives of rows, integers, objects, weights and gradients; without other ranks they do nothing."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from utils.distributed.group import barrier, long_wait_group, world_size
from utils.runtime.ranks import is_main_process, local_rank, rank

T = TypeVar("T")

BUCKET_BYTES = 25 << 20  # of gradients, all-reduced at a time


def synchronised(batches: Iterable[T]) -> Iterator[T]:
    """Yield this rank's batches, with a barrier before the first one and an all-reduce before each and at the end.

    Ranks may have different numbers of batches. A rank that hangs raises RuntimeError in the others.
    """
    barrier()
    iterator = iter(batches)
    while any_rank((batch := next(iterator, None)) is not None):
        if batch is not None:
            yield batch


def shard_slice(rows: int, group: int = 1) -> slice:
    """This rank's slice of `rows` rows, in order of rank; rows come in groups of `group`, which are not split."""
    if world_size() == 1:
        return slice(0, rows)
    groups = -(-rows // group)
    start, stop = (min(rows, group * (groups * r // world_size())) for r in (rank(), rank() + 1))
    return slice(start, stop)


def all_reduce_int(value: int) -> int:
    """The sum of an integer over all ranks."""
    return sum(_all_gather_int(value)) if world_size() > 1 else value


def all_gather_rows(local: Tensor) -> Tensor:
    """Concatenate the rows of all ranks in order of rank, bit for bit: (n, ...) from local tensors (m, ...).

    The number of rows may differ between ranks.
    """
    if world_size() == 1:
        return local
    lengths = _all_gather_int(len(local))
    rows = local.new_empty((sum(lengths), *local.shape[1:]))
    works = []
    for source, part in enumerate(rows.split(lengths)):
        if source == rank():
            part.copy_(local)
        if part.numel():
            works.append(dist.broadcast(part.view(torch.uint8), source, async_op=True))
    for work in works:
        work.wait()  # type: ignore[union-attr]
    return rows


def local_rows(rows: int) -> slice:
    """The slice of `all_gather_rows` that holds this rank's rows; `rows` is their number."""
    if world_size() == 1:
        return slice(0, rows)
    start = sum(_all_gather_int(rows)[: rank()])
    return slice(start, start + rows)


def all_reduce_sum(value: Tensor) -> Tensor:
    """The sum of a tensor over all ranks, the same to the last bit on each; all have one shape."""
    return all_gather_rows(value[None]).sum(dim=0)


def any_rank(flag: bool) -> bool:
    """Whether the flag is set on any rank."""
    return all_reduce_int(flag) > 0


def all_gather_object(value: T) -> list[T]:
    """The value of each rank, in order of rank."""
    if world_size() == 1:
        return [value]
    values: list = [None] * world_size()
    dist.all_gather_object(values, value, long_wait_group())
    return values


def broadcast_from_rank0(make: Callable[[], T]) -> T:
    """Call `make` on rank 0 alone, and return its result on every rank."""
    result = [make() if is_main_process() else None]
    barrier()
    if world_size() > 1:
        dist.broadcast_object_list(result, device=torch.device("cpu"))
    return result[0]  # type: ignore[return-value]


def from_rank0(function: Callable[..., T]) -> Callable[..., T]:
    """`function`, called on rank 0 alone, with its result on every rank."""

    @wraps(function)
    def call(*arguments, **keywords) -> T:
        return broadcast_from_rank0(lambda: function(*arguments, **keywords))

    return call


@contextmanager
def local_rank0_first() -> Iterator[None]:
    """Run the block on local rank 0 of each machine first, then on the other ranks."""
    if local_rank():
        barrier()
    yield
    if not local_rank():
        barrier()


def broadcast_model(model: nn.Module) -> None:
    """Broadcast the weights and buffers of rank 0."""
    if world_size() > 1:
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, 0)


def all_reduce_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Sum the gradients over all ranks, in buckets; a parameter without a gradient on every rank keeps none."""
    if world_size() == 1:
        return
    candidates = list(parameters)
    has_gradient = torch.tensor([parameter.grad is not None for parameter in candidates], dtype=torch.uint8)
    dist.all_reduce(has_gradient, dist.ReduceOp.MAX)
    bucket: list[Tensor] = []
    for parameter, has in zip(candidates, has_gradient.tolist(), strict=True):
        if has:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            bucket.append(parameter.grad)
        if sum(gradient.nbytes for gradient in bucket) >= BUCKET_BYTES:
            _all_reduce_flat(bucket)
            bucket = []
    if bucket:
        _all_reduce_flat(bucket)


def _all_reduce_flat(tensors: Sequence[Tensor]) -> None:
    """Sum each of some tensors over all ranks, in one all-reduce."""
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def _all_gather_int(value: int) -> list[int]:
    """The integer of each rank, in order of rank."""
    values = [torch.zeros(1, dtype=torch.int64) for _ in range(world_size())]
    dist.all_gather(values, torch.tensor([int(value)]))
    return [int(gathered) for gathered in values]
