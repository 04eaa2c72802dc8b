"""Exact nearest neighbours by squared L2 distance (faiss)."""

import faiss
import numpy as np
import torch
from torch import Tensor

BLOCK = 4096  # queries per search call: bounds the memory of its results


def nearest_neighbours(queries: Tensor, gallery: Tensor | None, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The `k` nearest gallery rows of each query: squared distances float32 (n, k), rising, and positions int64 (n, k).

    Descriptors are (n, d) and (m, d). With `gallery` None the queries are searched among themselves, and each leaves
    out its own position, whatever else lies at distance 0. With fewer images than `k` there are as many columns as
    images. Searched on the GPU when the queries lie there and faiss has one.
    """
    searched = queries if gallery is None else gallery
    k = min(k, len(searched) - (gallery is None))
    index: faiss.Index = faiss.IndexFlatL2(searched.shape[1])
    if queries.is_cuda and faiss.get_num_gpus():
        index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), queries.device.index or 0, index)
    index.add(_rows(searched))
    distances = np.empty((len(queries), k), np.float32)
    positions = np.empty((len(queries), k), np.int64)
    for start in range(0, len(queries), BLOCK):
        stop = min(start + BLOCK, len(queries))
        found = index.search(_rows(queries[start:stop]), k + (gallery is None))
        if gallery is None:
            found = _without_self(*found, np.arange(start, stop))
        distances[start:stop], positions[start:stop] = found
    return distances, positions


def _rows(descriptors: Tensor) -> np.ndarray:
    return np.ascontiguousarray(descriptors.detach().to("cpu", torch.float32).numpy())


def _without_self(distances: np.ndarray, positions: np.ndarray, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Drop each row's own position, or its last column where enough twins stand before it."""
    drop = positions == own[:, None]
    drop[~drop.any(axis=1), -1] = True
    shape = (len(own), positions.shape[1] - 1)
    return distances[~drop].reshape(shape), positions[~drop].reshape(shape)
