"""Scores of queries with their candidates: millions of pairs scheduled over the matcher."""

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

PAIRS = {"cpu": 200, "cuda": 6000}  # pairs scored at a time: activations stay in a CPU's cache, or fill a GPU


@torch.inference_mode()
def rerank(
    model: nn.Module, query_maps: Tensor, gallery_maps: Tensor, neighbours: Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """Score each query with its candidates and sort them: logits float32 (n, k), falling, and gallery positions (n, k).

    Maps are (n, d, h, w) and (m, d, h, w), on any device; `neighbours` (n, k) holds gallery positions. Pairs are scored
    query first, candidate second, on the device of the model's parameters and in the maps' number format; equal logits
    keep their order.
    """
    device = next(model.parameters()).device
    matcher: Any = copy.deepcopy(model.matcher).to(gallery_maps.dtype)  # type: ignore[arg-type]
    num_queries, columns = neighbours.shape
    scores = torch.empty(num_queries, columns)
    block = max(1, PAIRS[device.type] // max(columns, 1))
    with tqdm(total=num_queries * columns, desc="Reranking", unit="pair", unit_scale=True) as progress:
        for start in range(0, num_queries, block):
            rows = slice(start, start + block)
            candidates = neighbours[rows].to(gallery_maps.device)
            queries = matcher.encode_query(query_maps[rows].to(device)).repeat_interleave(columns, dim=0)
            maps = gallery_maps[candidates.flatten()].to(device)
            scores[rows] = matcher.score(queries, matcher.encode_candidate(maps)).view(-1, columns).cpu()
            progress.update(candidates.numel())
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    return scores.numpy(), neighbours.cpu().gather(1, order).numpy()
