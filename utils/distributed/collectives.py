"""What the ranks of a job exchange: rows, numbers, objects, weights and gradients."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from utils.distributed.group import barrier, long_wait_group, world_size
from utils.runtime.ranks import is_main_process, local_rank, rank

Piece = TypeVar("Piece")
Said = TypeVar("Said")

BUCKET = 25 << 20  # bytes of gradients that are exchanged at a time


def synchronised(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """This process's pieces of work. All processes wait for each other before the first one, and then meet before each
    piece and at the end: PeerError for one that is silent."""
    barrier()
    own = iter(pieces)
    while any_rank((piece := next(own, None)) is not None):
        if piece is not None:
            yield piece


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
    dist.all_gather_object(values, value, long_wait_group())
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
