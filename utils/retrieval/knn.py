"""Nearest neighbours by squared L2 distance (faiss): exact, or approximate for galleries of millions."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import faiss
import numpy as np
import torch
from torch import Tensor

from utils.distributed.collectives import all_gather_rows, shard_slice, synchronised
from utils.distributed.group import world_size
from utils.errors import InputError
from utils.runtime.memory import check_memory

EXACT = "Flat"
BLOCK = 2048  # queries searched at a time, with their self-matches dropped: of 1,000 neighbours, 25 MB
SAMPLE = 1000  # queries on which an approximate index is compared with exact search: its recall to about a point
TEMP_MEMORY = 256 << 20  # bytes of scratch space for faiss on a GPU; its default is up to 1.5 GB
MAX_GPU_NEIGHBOURS = 2048  # faiss's limit


def nearest_neighbours(
    queries: Tensor, gallery: Tensor | None, k: int, index: str = EXACT
) -> tuple[np.ndarray, np.ndarray]:
    """The `k` nearest gallery rows of each query: squared distances float32 (n, k), rising, and positions int64 (n, k).

    Descriptors are (n, d) and (m, d). With `gallery` None the queries are searched among themselves, and each leaves
    out its own position, even if other images are at distance 0. With fewer images than `k` there are as many columns
    as images. Exact search runs on the GPU if the queries are there, faiss supports it and `k` is at most 2,047.

    Another `index` (see `make_index`) runs on the CPU and returns its estimates of distances. A query for which it
    finds fewer than `k` rows is searched exactly, so that every position is valid. The number of these queries is
    printed, and the recall of exact neighbours. InputError for an index that faiss cannot build, train with so few
    rows, or search, for descriptors that are not finite, and for a single image without a gallery.
    """
    searched = queries if gallery is None else gallery
    for name, rows in (("query", queries), ("gallery", searched)):
        is_finite = rows.isfinite().all(dim=1)
        if not is_finite.all():
            raise InputError(f"the descriptor of {name} image {int(is_finite.int().argmin())} is not finite")
    if gallery is None and len(queries) == 1:
        raise InputError("one image has no neighbours among itself: give a set of two or more, or a gallery")
    own_positions = np.arange(len(queries)) if gallery is None else None
    k = min(k, len(searched) - (gallery is None))
    check_memory(len(queries) * (k + 1) * 12, f"{k} neighbours of {len(queries)} queries", "lower dataset.recalls")
    device = queries.device if k < MAX_GPU_NEIGHBOURS else torch.device("cpu")
    if index == EXACT:
        return _search(exact_index(searched, device), queries, own_positions, k)
    with _index_errors(index):
        distances, positions = _search(_approximate_index(index, searched), queries, own_positions, k)
    exact = exact_index(searched, device)

    def search_exactly(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self_positions = None if own_positions is None else own_positions[rows]
        return _search(exact, queries[torch.from_numpy(rows)], self_positions, k)

    incomplete = np.flatnonzero((positions < 0).any(axis=1))
    if len(incomplete):
        distances[incomplete], positions[incomplete] = search_exactly(incomplete)
        print(
            f"knn_index={index}: {len(incomplete)} of {len(queries)} queries found fewer than {k} neighbours and were "
            "searched exactly; a larger nprobe (of IVF) or efSearch (of HNSW) finds more"
        )
    sample = np.sort(np.random.default_rng(0).permutation(len(queries))[:SAMPLE])
    pairs = zip(positions[sample], search_exactly(sample)[1], strict=True)
    recall = np.mean([np.isin(expected, approximate) for approximate, expected in pairs])
    print(
        f"knn_index={index}: finds {100 * recall:.1f} % of the exact first {k} neighbours (sample of {len(sample)} "
        "queries)"
    )
    return distances, positions


def make_index(index: str, dimensions: int) -> faiss.Index:
    """The empty index that a string of faiss's index factory describes, search parameters behind a semicolon.

    `IVF1024,Flat;nprobe=16` or `HNSW32;efSearch=64`, for instance. InputError for a string that faiss does not take.
    """
    if not isinstance(index, str):
        raise InputError(f"knn_index={index!r} is no text: give 'Flat', or a string of faiss's index factory")
    description, _, parameters = index.partition(";")
    with _index_errors(index):
        empty = faiss.index_factory(dimensions, description, faiss.METRIC_L2)
        faiss.ParameterSpace().set_index_parameters(empty, parameters)  # type: ignore[arg-type]
    return empty


def _approximate_index(index: str, gallery: Tensor) -> faiss.Index:
    approximate, rows = make_index(index, gallery.shape[1]), _rows(gallery)
    approximate.train(rows)
    approximate.add(rows)
    return approximate


def exact_index(gallery: Tensor, device: torch.device) -> faiss.Index:
    """An index that searches gallery rows (m, d) exactly: on the GPU if `device` is one and faiss supports it; one
    process with several GPUs shards the rows over them."""
    index: faiss.Index = faiss.IndexFlatL2(gallery.shape[1])
    gpus = faiss.get_num_gpus() if device.type == "cuda" else 0
    if gpus:
        resources = [faiss.StandardGpuResources() for _ in range(gpus)]
        for of_gpu in resources:
            of_gpu.setTempMemory(TEMP_MEMORY)
        torch.cuda.empty_cache()  # faiss cannot use memory that torch caches
        with _gpu_memory_errors():
            if gpus == 1 or world_size() > 1:  # each rank has one GPU
                index = faiss.index_cpu_to_gpu(resources[0], device.index or 0, index)
            else:
                options = faiss.GpuMultipleClonerOptions()
                options.shard = True
                index = faiss.index_cpu_to_gpu_multiple_py(resources, index, options)
    with _gpu_memory_errors():
        index.add(_rows(gallery))
    return index


@contextmanager
def _gpu_memory_errors() -> Iterator[None]:
    """Turn faiss's errors for lack of GPU memory into InputError."""
    try:
        yield
    except RuntimeError as error:
        if "out of memory" not in str(error):
            raise
        raise InputError(
            f"faiss is out of memory on the GPU: free the device, or set cpu=True ({_faiss_message(error)})"
        ) from error


@contextmanager
def _index_errors(index: str) -> Iterator[None]:
    """Turn faiss's errors, but not torch's for a lost peer, into InputError."""
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("Error in "):
            raise
        raise InputError(
            f"knn_index={index!r} cannot be used: {_faiss_message(error)}. Give a string of faiss's index factory, its "
            "search parameters behind a semicolon ('IVF64,Flat;nprobe=8', 'HNSW32'), or 'Flat' for exact search"
        ) from error


def _faiss_message(error: RuntimeError) -> str:
    """The message of a faiss error, without its place in the source."""
    return re.sub(r"^Error in .*\.(?:cpp|cu):\d+: (Error: '.*' failed: )?", "", str(error), flags=re.DOTALL).strip()


def _search(
    index: faiss.Index, queries: Tensor, own_positions: np.ndarray | None, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Distances and positions (n, k) of queries without their `own_positions`, if given; -1 where none was found.

    Self-matches are dropped in place: a copy would take time. Each rank searches its shard of the queries.
    """
    shard = shard_slice(len(queries))
    if own_positions is not None:
        own_positions = own_positions[shard]
    rows, columns = _rows(queries[shard]), k + (own_positions is not None)
    distances = np.empty((len(rows), columns), np.float32)
    positions = np.empty((len(rows), columns), np.int64)
    for start in synchronised(range(0, len(rows), BLOCK)):
        block = slice(start, start + BLOCK)
        with _gpu_memory_errors():
            index.search(rows[block], columns, D=distances[block], I=positions[block])
        if own_positions is not None:
            _drop_self_matches(distances[block], positions[block], own_positions[block])
    distances, positions = (all_gather_rows(torch.from_numpy(part)).numpy() for part in (distances, positions))
    return (distances, positions) if own_positions is None else (distances[:, 1:], positions[:, 1:])


def _rows(descriptors: Tensor) -> np.ndarray:
    """Descriptors as faiss takes them: a contiguous float32 array."""
    return np.ascontiguousarray(descriptors.detach().to("cpu", torch.float32).numpy())


def _drop_self_matches(distances: np.ndarray, positions: np.ndarray, own_positions: np.ndarray) -> None:
    """Drop each row's own position, in place, so that its k neighbours are in columns 1 to k.

    Of query 7, the row 7, 3, 5 stays; 3, 7, 5 becomes 3, 3, 5. The row 3, 5, 9, in which 7 is missing since three other
    images are at distance 0, loses its last entry and becomes 3, 3, 5.
    """
    rows = np.flatnonzero(positions[:, 0] != own_positions)  # the others need no change
    dropped = positions[rows] == own_positions[rows, None]
    dropped[~dropped.any(axis=1), -1] = True
    for values in (distances, positions):
        values[rows, 1:] = values[rows][~dropped].reshape(len(rows), values.shape[1] - 1)
