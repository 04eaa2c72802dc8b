"""Scores of (query, candidate) pairs: millions of them, in batches that fit into memory."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from utils.distributed.collectives import all_gather_rows, shard_slice, synchronised
from utils.errors import InputError
from utils.runtime.device import device_errors_as_input_errors, is_out_of_memory
from utils.store.array_file import StoredRows, on_device_if_they_fit, one_ahead

# Pairs that are scored at a time. On two CPU cores with 1 MiB of second-level cache each, 20 to 160 were as fast, while
# 400 took 14 % longer. Not tuned on a GPU.
PAIRS_AT_ONCE = {"cpu": 40, "cuda": 6000, "mps": 600}
BATCHES_PER_SYNC = 100  # batches of pairs between two synchronisations of ranks
# Bytes of candidates' feature maps that are read from a file at a time, while the block before is scored.
BLOCK_BYTES = {"cpu": 32 << 20, "cuda": 256 << 20, "mps": 32 << 20}

Maps = Tensor | StoredRows


class Scorer(Protocol):
    """Scores pairs of feature maps (B, d, h, w): both sides are encoded separately, then compared; scores are (B,)."""

    def encode_queries(self, local: Tensor) -> Tensor: ...

    def encode_candidates(self, local: Tensor) -> Tensor: ...

    def score(self, query_tokens: Tensor, candidate_tokens: Tensor) -> Tensor: ...


def rerank(model: nn.Module, query_maps: Maps, gallery_maps: Maps, neighbours: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Score each query with its candidates and sort them: logits float32 (n, k), falling, and gallery positions (n, k).

    As `pair_scores` by the matcher alone; equal logits keep their order.
    """
    (logits,) = pair_scores(model, query_maps, gallery_maps, neighbours, [matcher_for(model, gallery_maps.dtype)])
    logits, order = logits.sort(dim=1, descending=True, stable=True)
    return logits.numpy(), neighbours.cpu().gather(1, order).numpy()


def matcher_for(model, dtype: torch.dtype) -> Scorer:
    """The model's matcher, with its matrix products in the feature maps' dtype."""
    return model.matcher.computing_in(dtype)


@torch.inference_mode()
def pair_scores(
    model: nn.Module,
    query_maps: Maps,
    gallery_maps: Maps,
    neighbours: Tensor,
    scorers: Sequence[Scorer],
    with_progress: bool = True,
    batch_size: int | None = None,
    among: Tensor | None = None,
) -> list[Tensor]:
    """Each scorer's score of each query with its candidates, float32 (n, k), on the CPU.

    `among`, bool (n, k), selects the pairs that are scored; the others' scores are NaN. Feature maps are (n, d, h, w)
    and (m, d, h, w), on any device or in a file; `neighbours` (n, k) holds gallery positions. The query is the first of
    a pair, the candidate the second. Pairs are scored on the device of the model's parameters. Feature maps move there
    as a whole if they fit; on a CPU, those in a file are read in blocks. The number of pairs scored at a time,
    `batch_size` or what suits the device, is halved whenever memory runs out. Each rank scores its shard of the
    queries. InputError if memory lacks for one pair, and for scores that are not finite.
    """
    device = next(model.parameters()).device
    is_self_search = query_maps is gallery_maps
    gallery_maps = on_device_if_they_fit(gallery_maps, device)
    query_maps = gallery_maps if is_self_search else on_device_if_they_fit(query_maps, device)
    pairs_at_once = batch_size or PAIRS_AT_ONCE[device.type]
    among = torch.ones(neighbours.shape, dtype=torch.bool) if among is None else among
    shard = shard_slice(len(neighbours))
    candidates = neighbours[shard][among[shard].to(neighbours.device)].cpu()
    query_of = torch.arange(shard.stop - shard.start).repeat_interleave(among[shard].sum(dim=1))  # of each pair
    scores = [torch.empty(len(candidates)) for _ in scorers]
    with (
        device_errors_as_input_errors("precision"),
        tqdm(
            total=len(scores[0]), desc="Reranking", unit="pair", unit_scale=True, disable=not with_progress
        ) as progress,
    ):
        for block in synchronised(
            _blocks(query_maps, shard.start, gallery_maps, candidates, query_of, pairs_at_once, device)
        ):
            start = block.start
            while start < block.stop:
                pairs = slice(start, min(start + pairs_at_once, block.stop))
                first, last = int(query_of[pairs.start]), int(query_of[pairs.stop - 1])
                queries = (query_of[pairs] - first).to(device)
                of_pairs = block.candidates[pairs.start - block.start : pairs.stop - block.start]
                try:
                    of_queries = _on_device(block.query_maps[first - block.query : last + 1 - block.query], device)
                    of_candidates = _on_device(block.gallery_maps[of_pairs], device)
                    for scorer, of_scorer in zip(scorers, scores, strict=True):
                        query = scorer.encode_queries(of_queries)[queries]
                        of_scorer[pairs] = scorer.score(query, scorer.encode_candidates(of_candidates)).cpu()
                except RuntimeError as error:
                    if not is_out_of_memory(error):
                        raise
                    if pairs_at_once == 1:
                        raise InputError(
                            "CUDA is out of memory for a single pair: free the device, or set cpu=True"
                        ) from None
                    pairs_at_once //= 2
                    continue
                progress.update(len(queries))
                start = pairs.stop
    nowhere = torch.full(among[shard].shape, torch.nan)
    scores = [all_gather_rows(nowhere.masked_scatter(among[shard], of_scorer)) for of_scorer in scores]
    for of_scorer in scores:
        _check_finite(of_scorer, among)
    return scores


def _check_finite(scores: Tensor, among: Tensor) -> None:
    """Raise InputError, naming the first pair, if scores (n, k) of pairs `among` them are not finite."""
    wrong = among & ~scores.isfinite()
    if wrong.any():
        query, candidate = wrong.nonzero()[0].tolist()
        raise InputError(
            f"the score of query {query} with its candidate {candidate} is NaN or infinite: set another precision "
            "than fp16, or take another checkpoint"
        )


class _Block(NamedTuple):
    """Pairs number `start` to `stop` - 1, and the feature maps that they need, in memory."""

    start: int
    stop: int
    query_maps: Tensor
    query: int  # number of the first query of `query_maps`
    gallery_maps: Tensor
    candidates: Tensor  # the row of `gallery_maps` of each pair


def _blocks(
    query_maps: Maps,
    first_query: int,
    gallery_maps: Maps,
    candidates: Tensor,
    query_of: Tensor,
    pairs_at_once: int,
    device: torch.device,
) -> Iterator[_Block]:
    """All pairs in order, in blocks of whole batches: each pair's candidate, and its query, counted from `first_query`.

    With feature maps in a file, a thread reads each candidate of a block once, by rising position, into one of two
    buffers, while the block before is scored from the other. For a GPU the buffers are pinned, and a block is copied
    there as a whole.
    """
    size = BATCHES_PER_SYNC * pairs_at_once
    for maps in (query_maps, gallery_maps):
        if isinstance(maps, StoredRows):
            rows = max(1, BLOCK_BYTES[device.type] // maps.layout.row_bytes)
            size = min(size, rows // pairs_at_once * pairs_at_once or rows)
    if isinstance(gallery_maps, StoredRows):
        pinned = device.type == "cuda"
        buffers = [gallery_maps.empty_rows(min(size, len(gallery_maps)), pinned) for _ in range(2)]

    def read(number: int) -> _Block:
        start, stop = number * size, min((number + 1) * size, len(candidates))
        query, last = (int(query_of[pair]) for pair in (start, stop - 1))
        of_pairs = candidates[start:stop]
        of_queries = query_maps[first_query + query : first_query + last + 1]
        if not isinstance(gallery_maps, StoredRows):
            return _Block(start, stop, of_queries, query, gallery_maps, of_pairs.to(gallery_maps.device))
        rows, places = np.unique(of_pairs.numpy(), return_inverse=True)
        of_gallery = gallery_maps.read(rows, buffers[number % 2])
        return _Block(start, stop, of_queries, query, of_gallery, torch.from_numpy(places))

    numbers = range(-(-len(candidates) // size))
    in_memory = isinstance(query_maps, Tensor) and isinstance(gallery_maps, Tensor)
    for block in map(read, numbers) if in_memory else one_ahead(read, numbers):
        if isinstance(gallery_maps, StoredRows):
            block = block._replace(
                gallery_maps=_on_device(block.gallery_maps, device), candidates=block.candidates.to(device)
            )
        yield block


def _on_device(maps: Tensor, device: torch.device) -> Tensor:
    """Feature maps on the device; copies to CUDA go through pinned memory."""
    if device.type == "cuda" and maps.device.type != "cuda":
        return maps.pin_memory().to(device, non_blocking=True)
    return maps.to(device)
