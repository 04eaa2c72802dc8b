"""Arguments of `Reranker` beside images, checked: the device, the weights of fusion, the candidates' positions, how
it is computed."""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor

from utils.errors import InputError
from utils.retrieval.ranking import WEIGHT, Weights
from utils.runtime.precision import DTYPES
from utils.settings import FLAG, Rules, check_settings, one_of, plain, whole_number

TOP_K = whole_number(1).or_none()
OPTIONS: Rules = {"progress": FLAG, "batch_size": whole_number(1).or_none(), "precision": one_of(*DTYPES)}
FITTED, LOGIT, CASCADE = "fitted", "logit", "cascade"
Fusion = str | Sequence[float] | np.ndarray | None
Positions = np.ndarray | Tensor | Sequence[int] | Sequence[Sequence[int]]


class Options(TypedDict, total=False):
    """How features and scores are computed."""

    progress: bool  # whether a bar is shown
    batch_size: int | None  # images embedded, or pairs scored, at a time; None: what suits the device
    precision: str  # of matrix products and convolutions


def checked_options(
    progress: bool = False, batch_size: int | None = None, precision: str = "fp32"
) -> tuple[bool, int | None, str]:
    """The values of `Options`; InputError for invalid ones."""
    values = progress, plain(batch_size), precision
    check_settings(dict(zip(OPTIONS, values, strict=True)), OPTIONS)
    return values


def device_of(device: torch.device | str | None) -> torch.device:
    counts = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    try:
        known = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device is None else device)
        is_available = known.type == "cpu" or (known.index or 0) < counts.get(known.type, 0)
    except (RuntimeError, TypeError):  # unknown to torch
        is_available = False
    if not is_available:
        raise InputError(
            f"device={str(device)!r}: give 'cpu', 'cuda' or 'mps'; torch sees {counts['cuda']} CUDA devices and "
            f"{counts['mps']} MPS devices (Apple's)"
        )
    return known


def weights_of(fusion: Fusion, num_candidates: int, own: Weights | None, cascade: Weights | None) -> Weights:
    """The weights of a `fusion`; `own` are the network's, and `cascade` those with their margin."""
    if isinstance(fusion, str) and fusion == CASCADE:
        if cascade is None:
            raise InputError(
                f"fusion='{CASCADE}': the network has no weights with a logit and a margin: fit them "
                "(docs/rankings.md), or leave the cascade out"
            )
        return cascade._replace(num_candidates=num_candidates)
    if isinstance(fusion, str) and fusion == FITTED and own is not None:
        return own._replace(num_candidates=num_candidates)
    if fusion is None or (isinstance(fusion, str) and fusion in (FITTED, LOGIT)):
        return Weights(1, 0, 0, num_candidates)
    values = fusion.tolist() if isinstance(fusion, np.ndarray) else fusion
    weights = list(map(plain, values)) if isinstance(values, Sequence) and not isinstance(values, str) else []
    if len(weights) != 2 or not all(map(WEIGHT.accepts, weights)):
        raise InputError(
            f"fusion={fusion!r}: give '{FITTED}', '{CASCADE}', '{LOGIT}', or (w, v), two numbers from 0 to 1,000,000"
        )
    cosine, chamfer = weights
    return Weights(1, cosine, chamfer, num_candidates)


def positions_of(neighbours: Positions, num_queries: int, num_images: int) -> Tensor:
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
