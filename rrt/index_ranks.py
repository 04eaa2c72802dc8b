"""Photos embedded by several ranks. Rank 0 does all else of an index, and sends the others its network and paths."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from rrt.features import Features
from rrt.pretrained import load
from rrt.reranker import Reranker
from sop.images.reading import read_photos
from utils.distributed.collectives import all_gather_object, all_gather_rows, broadcast_from_rank0, shard_slice
from utils.distributed.group import process_group, world_size
from utils.errors import InputError, ReportedError
from utils.runtime.device import own_gpu
from utils.runtime.ranks import is_main_process, rank

TIMEOUT_MINUTES = 10  # for the features of a batch


def on_rank0(work: Callable[[], None]) -> None:
    """Do the work on rank 0, and raise its errors there; meanwhile the other ranks take part in `share` and `embed`."""
    error = None
    with process_group(TIMEOUT_MINUTES, on_cpu=True):
        if not is_main_process():
            _take_part()
            return
        try:
            work()
        except (ReportedError, OSError) as reported:
            error = reported
        broadcast_from_rank0(lambda: None)
    if error is not None:
        raise error


def share(reranker: Reranker) -> None:
    """Send the network to the other ranks; InputError where one of them cannot use it."""
    if world_size() > 1:
        with TemporaryDirectory() as folder:
            reranker.save_pretrained(folder)
            files = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
        broadcast_from_rank0(lambda: files)
        errors = [error for error in all_gather_object("") if error]
        if errors:
            raise InputError(errors[0])


def embed(paths: Sequence[str], reranker: Reranker) -> tuple[Features, dict[str, str]]:
    """The features of photos that can be read, in order, and by path the problems of the others."""
    if world_size() > 1:
        broadcast_from_rank0(lambda: paths)
    return _embed_slice(paths, reranker)


def _take_part() -> None:
    files = _received()
    if files is None:
        return
    error = ""
    try:
        with TemporaryDirectory() as folder:
            for name, content in files.items():
                Path(folder, name).write_bytes(content)
            reranker = Reranker(*load(folder, None, {}), device=own_gpu() if torch.cuda.is_available() else "cpu")
    except (ReportedError, OSError) as reported:
        error = f"rank {rank()}: {reported}"
    all_gather_object(error)
    while (paths := _received()) is not None:
        with suppress(ReportedError, OSError):  # rank 0 has the same, and reports it
            _embed_slice(paths, reranker)


def _received() -> Any:
    """What rank 0 sends, None at its end."""
    return broadcast_from_rank0(lambda: None)


def _embed_slice(paths: Sequence[str], reranker: Reranker) -> tuple[Features, dict[str, str]]:
    """What `embed` returns, on each rank; a rank computes its slice. An error of one is raised by all."""
    paths = paths[shard_slice(len(paths))]
    pixels, problems, error = [], {}, None
    try:
        for path, image in zip(paths, read_photos([*map(Path, paths)], reranker.pixels), strict=True):
            if isinstance(image, InputError):
                problems[path] = str(image)
            else:
                pixels.append(image)
        local = reranker.embed_pixels(torch.stack(pixels)) if pixels else reranker._nothing()
    except (ReportedError, OSError) as reported:
        error = reported
    of_ranks = all_gather_object((problems, str(error or "")))
    if error is not None:
        raise error
    for source, (_, failure) in enumerate(of_ranks):
        if failure:
            raise InputError(f"rank {source}: {failure}")
    features = Features(*map(all_gather_rows, local))
    for source, (of_rank, _) in enumerate(of_ranks):
        problems |= {path: f"rank {source}: " * bool(source) + problem for path, problem in of_rank.items()}
    return features, problems
