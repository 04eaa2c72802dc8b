"""What a cascade saves and loses: `python -m tools.cascade PHOTOS/test.txt --model CHECKPOINT`.

Each photo of the list is searched among the others by the global descriptors, and reranked by the checkpoint's own
weights, with all logits and in a cascade. Times are medians of TIMED queries, one at a time.
"""

import statistics
import time

from rrt.arguments import CASCADE, FITTED
from tools.judge import Searched, searched
from utils.errors import InputError
from utils.retrieval.measures import changes_of, measures_of

TIMED = 50


def milliseconds(photos: Searched, fusion: str) -> float:
    reranker, features, _, found = photos
    times = []
    for row in range(0, len(features), max(1, len(features) // TIMED)):
        start = time.perf_counter()
        reranker.rerank(features[row], features, found[row], fusion)
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def main() -> None:
    photos = searched("Compare a ranking with its cascade.")
    reranker, features, labels, found = photos
    if reranker.fusion is None:
        raise InputError(f"{reranker} has no fitted weights: give the checkpoint of a training with validation photos")
    number, measures = reranker.fusion.num_candidates, {}
    photos = photos._replace(found=found[:, :number])
    for fusion in (FITTED, CASCADE):
        positions = found.copy()
        positions[:, :number] = reranker.rerank(features, features, photos.found, fusion, progress=True).positions
        measures[fusion] = measures_of(positions, labels, labels, [1, 10], True)
        print(f"{reranker.weights(fusion, number)}: {measures[fusion].values}")
        print(f"  {milliseconds(photos, fusion):.1f} ms a query")
    print(*changes_of(measures[FITTED].ranks, measures[CASCADE].ranks, labels, [1]))


if __name__ == "__main__":
    main()
