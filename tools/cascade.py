"""What a cascade saves and loses: `python -m tools.cascade CHECKPOINT PHOTOS/test.txt`.

Each photo of the list is searched among the others by the global descriptors, and reranked by the checkpoint's own
weights, with all logits and in a cascade. Times are medians of TIMED queries, one at a time.
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np

from rrt import Features, Reranker
from rrt.arguments import CASCADE, FITTED
from sop.splits import class_map, read_split
from utils.metrics import MAX_CANDIDATES
from utils.retrieval.knn import nearest_neighbours
from utils.retrieval.measures import changes_of, measures_of

TIMED = 50  # queries


def seconds(reranker: Reranker, features: Features, found: np.ndarray, fusion: str) -> float:
    """The median time of a query."""
    times = []
    for row in range(0, len(features), max(1, len(features) // TIMED)):
        start = time.perf_counter()
        reranker.rerank(features[row], features, found[row], fusion)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare a ranking with its cascade.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("photos", type=Path, metavar="LIST", help="of photos and their classes")
    options = parser.parse_args()
    split = read_split(options.photos.parent, options.photos.name)
    labels = np.array([class_map(split)[number] for number in split.classes])
    reranker = Reranker.from_pretrained(options.checkpoint)
    features = reranker.embed([options.photos.parent / path for path in split.paths], progress=True)
    number = reranker.own_weights.num_candidates if reranker.own_weights else MAX_CANDIDATES
    found = nearest_neighbours(features.descriptors, None, MAX_CANDIDATES)[1]
    measures = {}
    for fusion in (FITTED, CASCADE):
        positions = found.copy()
        positions[:, :number] = reranker.rerank(features, features, found[:, :number], fusion, progress=True).positions
        measures[fusion] = measures_of(positions, labels, labels, [1, 10], True)
        print(f"{reranker.weights(fusion, number)}: {measures[fusion].values}")
        print(f"  {1000 * seconds(reranker, features, found[:, :number], fusion):.1f} ms a query")
    print(*changes_of(measures[FITTED].ranks, measures[CASCADE].ranks, labels, [1]))


if __name__ == "__main__":
    main()
