"""What a caller of `Reranker` gives beside images, checked: a device, the weights of fusion, candidates' positions."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from utils.errors import InputError
from utils.retrieval.ranking import Weights
from utils.settings import number, plain, whole_number

WEIGHT = number(0, 1_000_000)
TOP_K = whole_number(1).or_none()
Fusion = Sequence[float] | np.ndarray | None


def device_of(device: torch.device | str | None) -> torch.device:
    try:
        chosen = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device is None else device)
        is_there = chosen.type == "cpu" or (chosen.type == "cuda" and (chosen.index or 0) < torch.cuda.device_count())
    except (RuntimeError, TypeError):  # unknown to torch
        is_there = False
    if not is_there:
        raise InputError(
            f"device={str(device)!r}: give 'cpu' or 'cuda'; of the latter torch sees {torch.cuda.device_count()} here"
        )
    return chosen


def weights_of(fusion: Fusion, num_candidates: int) -> Weights:
    if fusion is None:
        return Weights(1, 0, 0, num_candidates)
    given = fusion.tolist() if isinstance(fusion, np.ndarray) else fusion
    weights = list(map(plain, given)) if isinstance(given, Sequence) else []
    if len(weights) != 2 or not all(map(WEIGHT.accepts, weights)):
        raise InputError(f"fusion={fusion!r}: give None, or (w, v), two numbers from 0 to 1,000,000")
    cosine, chamfer = weights
    return Weights(1, cosine, chamfer, num_candidates)


def positions_of(neighbours: np.ndarray | Tensor, queries: int, images: int) -> Tensor:
    advice = f"give whole numbers ({queries}, k), a row for each query, and fill up shorter rows with -1"
    try:
        given = np.asarray(neighbours.cpu() if isinstance(neighbours, Tensor) else neighbours)
    except ValueError:
        raise InputError(f"neighbours have rows of different lengths: {advice}") from None
    if given.ndim == 1 and queries == 1:
        given = given[None]
    if given.ndim != 2 or len(given) != queries or (given.size and given.dtype.kind not in "iu"):
        raise InputError(f"neighbours {given.shape} of {given.dtype}: {advice}")
    positions = torch.from_numpy(given.astype(np.int64))
    if positions.numel() and not -1 <= positions.min() <= positions.max() < images:
        raise InputError(
            f"neighbours hold {int(positions.min())} to {int(positions.max())}, but the gallery has {images} images, "
            "numbered from 0"
        )
    return positions
