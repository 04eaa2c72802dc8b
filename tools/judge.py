"""What the ranking gives that a model uses without being asked: `python -m tools.judge PHOTOS/test.txt`.

Each photo of the list is searched among the others by the global descriptors, and the first 100 are reranked.
"""

import argparse
from pathlib import Path

import numpy as np

from rrt import Reranker
from rrt.heads import SHIPPED
from sop.splits import class_map, read_split
from utils.metrics import MAX_CANDIDATES
from utils.retrieval.knn import nearest_neighbours
from utils.retrieval.measures import changes_of, measures_of


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the ranking of a pretrained backbone, with its head.")
    parser.add_argument("photos", type=Path, metavar="LIST", help="of photos and their classes")
    parser.add_argument("--backbone", default="tf_efficientnet_lite0", metavar="NAME")
    parser.add_argument("--head", default=SHIPPED, metavar="FILE", help="'' for none")
    options = parser.parse_args()
    split = read_split(options.photos.parent, options.photos.name)
    labels = np.array([class_map(split)[number] for number in split.classes])
    reranker = Reranker.from_backbone(options.backbone, head=options.head or None)
    print(reranker)
    features = reranker.embed([options.photos.parent / path for path in split.paths], progress=True)
    found = nearest_neighbours(features.descriptors, None, MAX_CANDIDATES)[1]
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
