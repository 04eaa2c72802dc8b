"""What the ranking gives that a model uses without being asked: `python -m tools.judge PHOTOS/test.txt`.

Each photo of the list is searched among the others by the global descriptors, and the first 100 are reranked.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rrt import Features, Reranker
from rrt.heads import SHIPPED
from sop.splits import class_map, read_split
from utils.metrics import MAX_CANDIDATES
from utils.retrieval.knn import nearest_neighbours
from utils.retrieval.measures import changes_of, measures_of


class Searched(NamedTuple):
    """Photos, searched among themselves by the global descriptors of a model."""

    reranker: Reranker
    features: Features
    labels: np.ndarray  # (n,), classes from 0
    found: np.ndarray  # (n, 100) positions, each photo's nearest


def searched(description: str) -> Searched:
    """The photos and the model of the command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("photos", type=Path, metavar="LIST", help="of photos and their classes")
    parser.add_argument("--model", help="in place of a backbone: a checkpoint, folder or repository")
    parser.add_argument("--backbone", default="tf_efficientnet_lite0", metavar="NAME")
    parser.add_argument("--head", default=SHIPPED, metavar="FILE", help="'' for none")
    options = parser.parse_args()
    split = read_split(options.photos.parent, options.photos.name)
    labels = np.array([class_map(split)[number] for number in split.classes])
    if options.model is None:
        reranker = Reranker.from_backbone(options.backbone, head=options.head or None)
    else:
        reranker = Reranker.from_pretrained(options.model)
    print(reranker)
    features = reranker.embed([options.photos.parent / path for path in split.paths], progress=True)
    return Searched(reranker, features, labels, nearest_neighbours(features.descriptors, None, MAX_CANDIDATES)[1])


def main() -> None:
    reranker, features, labels, found = searched("Measure the ranking of a model, such as a backbone with its head.")
    reranked = reranker.rerank(features, features, found).positions
    before, after = (measures_of(positions, labels, labels, [1, 10], True) for positions in (found, reranked))
    print(
        f"global: {before.values}",
        f"own: {after.values}",
        *changes_of(before.ranks, after.ranks, labels, [1]),
        sep="\n",
    )


if __name__ == "__main__":
    main()
