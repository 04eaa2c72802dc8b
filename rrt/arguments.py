"""Arguments of `Reranker` beside images, checked: the device, the weights of fusion, the candidates' positions."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from utils.errors import InputError
from utils.retrieval.ranking import WEIGHT, Weights
from utils.settings import plain, whole_number

TOP_K = whole_number(1).or_none()
FITTED, LOGIT = "fitted", "logit"
Fusion = str | Sequence[float] | np.ndarray | None


def device_of(device: torch.device | str | None) -> torch.device:
    try:
        known = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device is None else device)
        is_available = known.type == "cpu" or (known.type == "cuda" and (known.index or 0) < torch.cuda.device_count())
    except (RuntimeError, TypeError):  # unknown to torch
        is_available = False
    if not is_available:
        raise InputError(
            f"device={str(device)!r}: give 'cpu' or 'cuda'; torch sees {torch.cuda.device_count()} CUDA devices"
        )
    return known


def weights_of(fusion: Fusion, num_candidates: int, own: Weights | None) -> Weights:
    """The weights of a `fusion`; `own` are the network's."""
    if isinstance(fusion, str) and fusion == FITTED and own is not None:
        return own._replace(num_candidates=num_candidates)
    if fusion is None or (isinstance(fusion, str) and fusion in (FITTED, LOGIT)):
        return Weights(1, 0, 0, num_candidates)
    values = fusion.tolist() if isinstance(fusion, np.ndarray) else fusion
    weights = list(map(plain, values)) if isinstance(values, Sequence) and not isinstance(values, str) else []
    if len(weights) != 2 or not all(map(WEIGHT.accepts, weights)):
        raise InputError(f"fusion={fusion!r}: give '{FITTED}', '{LOGIT}', or (w, v), two numbers from 0 to 1,000,000")
    cosine, chamfer = weights
    return Weights(1, cosine, chamfer, num_candidates)


def positions_of(neighbours: np.ndarray | Tensor, num_queries: int, num_images: int) -> Tensor:
    advice = f"give whole numbers ({num_queries}, k), a row for each query, and fill up shorter rows with -1"
    try:
        array = np.asarray(neighbours.cpu() if isinstance(neighbours, Tensor) else neighbours)
    except ValueError:
        raise InputError(f"neighbours have rows of different lengths: {advice}") from None
    if array.ndim == 1 and num_queries == 1:
        array = array[None]
    if array.ndim != 2 or len(array) != num_queries or (array.size and array.dtype.kind not in "iu"):
        raise InputError(f"neighbours {array.shape} of {array.dtype}: {advice}")
    positions = torch.from_numpy(array.astype(np.int64))
    if positions.numel() and not -1 <= positions.min() <= positions.max() < num_images:
        raise InputError(
            f"neighbours hold {int(positions.min())} to {int(positions.max())}, but the gallery has {num_images} "
            "images, numbered from 0"
        )
    return positions
