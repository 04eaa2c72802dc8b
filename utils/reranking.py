"""Scores of queries with their candidates: millions of pairs scheduled over the matcher."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from utils.errors import InputError

PAIRS = {"cpu": 40, "cuda": 6000}  # pairs scored at a time: activations stay in a CPU's cache, or fill a GPU


@torch.inference_mode()
def rerank(
    model: nn.Module, query_maps: Tensor, gallery_maps: Tensor, neighbours: Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """Score each query with its candidates and sort them: logits float32 (n, k), falling, and gallery positions (n, k).

    Maps are (n, d, h, w) and (m, d, h, w), on any device; `neighbours` (n, k) holds gallery positions. Pairs are scored
    query first, candidate second, on the device of the model's parameters and in the maps' number format; equal logits
    keep their order. Maps move there as a whole where they fit. Where memory runs out, fewer pairs are scored at a
    time; InputError when it lacks for one.
    """
    device = next(model.parameters()).device
    matcher: Any = model.matcher.computing_in(gallery_maps.dtype)  # type: ignore[operator,union-attr]
    alone = query_maps is gallery_maps
    gallery_maps = _placed(gallery_maps, device)
    query_maps = gallery_maps if alone else _placed(query_maps, device)
    places = neighbours.flatten().to(gallery_maps.device)
    scores = torch.empty(len(places))
    start, at_once, columns = 0, PAIRS[device.type], neighbours.shape[1]
    with tqdm(total=len(places), desc="Reranking", unit="pair", unit_scale=True) as progress:
        while start < len(places):
            chunk = slice(start, min(start + at_once, len(places)))
            queries = torch.arange(chunk.start, chunk.stop, device=device) // columns
            first, last = chunk.start // columns, (chunk.stop - 1) // columns
            try:
                query = matcher.encode_queries(_moved(query_maps[first : last + 1], device))[queries - first]
                candidate = matcher.encode_candidates(_moved(gallery_maps[places[chunk]], device))
                scores[chunk] = matcher.score(query, candidate).cpu()
            except torch.OutOfMemoryError:
                if at_once == 1:
                    raise InputError(
                        "CUDA is out of memory for a single pair: free the device, or set cpu=True"
                    ) from None
                at_once //= 2
                continue
            progress.update(len(queries))
            start += at_once
    scores = scores.view(neighbours.shape)
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    return scores.numpy(), neighbours.cpu().gather(1, order).numpy()


def _placed(maps: Tensor, device: torch.device) -> Tensor:
    """Maps on the device where they take no more than half of its free memory, else where they are."""
    fit = device.type != "cuda" or maps.nbytes <= torch.cuda.mem_get_info(device)[0] // 2
    return maps.to(device) if fit else maps


def _moved(chosen: Tensor, device: torch.device) -> Tensor:
    """A few maps on the device, by way of pinned memory where they come from another."""
    return chosen if chosen.device.type == device.type else chosen.pin_memory().to(device, non_blocking=True)
