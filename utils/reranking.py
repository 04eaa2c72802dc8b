"""Scores of queries with their candidates: millions of pairs scheduled over the matcher."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from utils.errors import InputError
from utils.processes import all_rows, share

# Pairs that are scored at a time. On two CPU cores with 1 MiB of second-level cache each, 20 to 160 were as fast, while
# 400 took 14 % longer. Not tuned on a GPU.
PAIRS_AT_ONCE = {"cpu": 40, "cuda": 6000}


class Scorer(Protocol):
    """What scores pairs of local maps (B, d, h, w): each side is encoded by itself, then they are compared, (B,)."""

    def encode_queries(self, local: Tensor) -> Tensor: ...

    def encode_candidates(self, local: Tensor) -> Tensor: ...

    def score(self, query_tokens: Tensor, candidate_tokens: Tensor) -> Tensor: ...


def rerank(
    model: nn.Module, query_maps: Tensor, gallery_maps: Tensor, neighbours: Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """Score each query with its candidates and sort them: logits float32 (n, k), falling, and gallery positions (n, k).

    As `pair_scores` by the matcher alone; equal logits keep their order.
    """
    (logits,) = pair_scores(model, query_maps, gallery_maps, neighbours, [matcher_for(model, gallery_maps.dtype)])
    logits, order = logits.sort(dim=1, descending=True, stable=True)
    return logits.numpy(), neighbours.cpu().gather(1, order).numpy()


def matcher_for(model, dtype: torch.dtype) -> Scorer:
    """The model's matcher with its products in the maps' number format."""
    return model.matcher.computing_in(dtype)


@torch.inference_mode()
def pair_scores(
    model: nn.Module, query_maps: Tensor, gallery_maps: Tensor, neighbours: Tensor, scorers: Sequence[Scorer]
) -> list[Tensor]:
    """Each scorer's score of each query with its candidates, float32 (n, k), on the CPU.

    Maps are (n, d, h, w) and (m, d, h, w), on any device; `neighbours` (n, k) holds gallery positions. Pairs are scored
    query first, candidate second, on the device of the model's parameters. Maps move there as a whole where they fit.
    Where memory runs out, fewer pairs are scored at a time. Of a job of several processes each scores its share of the
    queries. InputError when it lacks for one, and for scores that are not finite.
    """
    device = next(model.parameters()).device
    is_self_search = query_maps is gallery_maps
    gallery_maps = _on_device_if_they_fit(gallery_maps, device)
    query_maps = gallery_maps if is_self_search else _on_device_if_they_fit(query_maps, device)
    part = share(len(neighbours))
    query_maps, candidates = query_maps[part], neighbours[part].flatten().to(gallery_maps.device)
    scores = [torch.empty(len(candidates)) for _ in scorers]
    start, pairs_at_once, columns = 0, PAIRS_AT_ONCE[device.type], neighbours.shape[1]
    with tqdm(total=len(candidates), desc="Reranking", unit="pair", unit_scale=True) as progress:
        while start < len(candidates):
            pairs = slice(start, min(start + pairs_at_once, len(candidates)))
            # pair number i is of query number i // columns
            queries = torch.arange(pairs.start, pairs.stop, device=device) // columns
            first, last = pairs.start // columns, (pairs.stop - 1) // columns
            try:
                of_queries = _on_device(query_maps[first : last + 1], device)
                of_candidates = _on_device(gallery_maps[candidates[pairs]], device)
                for scorer, of_scorer in zip(scorers, scores, strict=True):
                    query = scorer.encode_queries(of_queries)[queries - first]
                    of_scorer[pairs] = scorer.score(query, scorer.encode_candidates(of_candidates)).cpu()
            except torch.OutOfMemoryError:
                if pairs_at_once == 1:
                    raise InputError(
                        "CUDA is out of memory for a single pair: free the device, or set cpu=True"
                    ) from None
                pairs_at_once //= 2
                continue
            progress.update(len(queries))
            start += pairs_at_once
    scores = [all_rows(of_scorer.view(-1, columns)).flatten() for of_scorer in scores]
    for of_scorer in scores:
        if not of_scorer.isfinite().all():
            number, candidate = divmod(int(of_scorer.isfinite().int().argmin()), columns)
            raise InputError(
                f"the score of query {number} with its candidate {candidate} is NaN or infinite: set another precision "
                "than fp16, or take another checkpoint"
            )
    return [of_scorer.view(neighbours.shape) for of_scorer in scores]


def _on_device_if_they_fit(maps: Tensor, device: torch.device) -> Tensor:
    """Maps on the device where they take no more than half of its free memory, else where they are."""
    fit = device.type != "cuda" or maps.nbytes <= torch.cuda.mem_get_info(device)[0] // 2
    return maps.to(device) if fit else maps


def _on_device(maps: Tensor, device: torch.device) -> Tensor:
    """Maps on the device, by way of pinned memory where they come from another."""
    return maps if maps.device.type == device.type else maps.pin_memory().to(device, non_blocking=True)
