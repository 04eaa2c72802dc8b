"""What smaller maps of a gallery cost: `python -m tools.map_codes PHOTOS/test.txt [--model CHECKPOINT]`.

Each photo of the list is searched among the others, and the first 100 are reranked by maps of each kind. Prints R@1 and
mAP@R with their change from float32 maps, bytes of a photo's map, and times, medians of REPEATS.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from rrt import Features
from rrt.map_codes import decode, encode
from rrt.words import MAPS
from tools.judge import Searched, searched
from utils.retrieval.chamfer import Chamfer
from utils.retrieval.intervals import mean_interval
from utils.retrieval.measures import changes_of, first_match_ranks, precisions_of, relevant_of
from utils.retrieval.pair_scoring import Scorer, pair_scores
from utils.retrieval.ranking import Candidates, Weights, candidate_cosines, ranking_by

REPEATS = 20


def milliseconds(work: Callable[[], object]) -> float:
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def scores_by(photos: Searched, maps: torch.Tensor) -> Candidates:
    """All scores of queries with their candidates, whose local maps are `maps`."""
    reranker, (descriptors, own), _, found = photos
    scorers: list[Scorer] = [Chamfer()]
    if reranker.matcher_trained:
        scorers.append(reranker.network.matcher)
    neighbours = torch.from_numpy(found)
    chamfer, *logits = pair_scores(reranker.network, own, maps, neighbours, scorers, with_progress=False)
    cosines = candidate_cosines(descriptors, descriptors, neighbours)
    return Candidates(found, cosines, chamfer.numpy(), logits[0].numpy() if logits else None)


def print_changes(photos: Searched, kind: str, scored: Candidates, exact: Candidates) -> None:
    """The measures of each ranking by scores of a kind of maps, and their changes from those of exact ones."""
    reranker, _, labels, found = photos
    relevant, depth = relevant_of(labels, labels, True), found.shape[1]
    rankings = {"own": reranker.own_weights or Weights(1, 0, 0, depth), "Chamfer": Weights(0, 0, 1, depth)}
    if reranker.matcher_trained:
        rankings["logit"] = Weights(1, 0, 0, depth)
    for name, weights in rankings.items():
        before, after = (ranking_by(candidates, weights).positions for candidates in (exact, scored))
        ranks = [first_match_ranks(positions, labels, labels) for positions in (before, after)]
        precision = [precisions_of(positions, labels, labels, relevant)[0] for positions in (before, after)]
        change = precision[1] - precision[0]
        low, high = mean_interval(change, labels)
        print(
            f"{kind}, {name} ({weights}): R@1 {100 * np.mean(ranks[1] < 1):.2f}, mAP@R {100 * precision[1].mean():.2f}",
            f"  {changes_of(ranks[0], ranks[1], labels, [1])[0]}",
            f"  mAP@R: {100 * change.mean():+.2f} points (95 % interval {100 * low:+.2f} to {100 * high:+.2f})",
            sep="\n",
        )


def main() -> None:
    photos = searched("Measure what smaller maps of a gallery cost.")
    reranker, features, _, found = photos
    exact = scores_by(photos, features.maps)
    print_changes(photos, "float32", exact, exact)
    shape, names = features.maps.shape[1:], [""] * len(features)
    for kind in MAPS:
        rows = encode(features.maps, kind, names)
        print_changes(photos, kind, scores_by(photos, decode(rows, kind, shape)), exact)
        candidates = rows[found[0]]
        gallery = Features(features.descriptors[found[0]], decode(candidates, kind, shape))
        print(
            f"{kind}: {rows[0].nbytes} bytes, decoding {len(candidates)} maps "
            f"{milliseconds(partial(decode, candidates, kind, shape)):.1f} ms, reranking as many "
            f"{milliseconds(partial(reranker.rank, features[0], gallery)):.1f} ms"
        )


if __name__ == "__main__":
    main()
