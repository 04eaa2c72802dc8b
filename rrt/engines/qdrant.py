"""Features in a collection of Qdrant: of a server, by its address, or in local mode."""

from collections.abc import Iterable
from math import isqrt
from typing import Any

import numpy as np
import torch
from qdrant_client import QdrantClient, models

from rrt.features import Features

DESCRIPTOR, MAP = "descriptor", "map"
POINTS_AT_ONCE = 64  # a server takes 32 MB at a time; a point of 128 + 128 x 7 x 7 numbers is some 130 kB of JSON


class QdrantStore:
    """A collection with two named vectors of a point: `descriptor`, and the local map (dl, h, w) as multivector `map`
    of h * w vectors. Ids are Qdrant's, numbers from 0 and UUIDs; of the latter `search` gives the text.

    Both are compared by their dot product, as Qdrant would change vectors that it compares by the cosine.
    """

    def __init__(self, client: QdrantClient, collection: str):
        self.client, self.collection = client, collection

    def add(self, ids: Iterable[Any], features: Features) -> None:
        """Add or replace points; makes the collection where there is none."""
        descriptors, maps = (torch.as_tensor(part) for part in features)
        if not self.client.collection_exists(self.collection):
            tokens = models.VectorParams(
                size=maps.shape[1],
                distance=models.Distance.DOT,
                hnsw_config=models.HnswConfigDiff(m=0),  # no index: it is not searched
                on_disk=True,
                multivector_config=models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM),
            )
            descriptor = models.VectorParams(size=descriptors.shape[1], distance=models.Distance.DOT)
            self.client.create_collection(self.collection, {DESCRIPTOR: descriptor, MAP: tokens})
        points = (
            models.PointStruct(id=id, vector={DESCRIPTOR: descriptor.tolist(), MAP: map.flatten(1).T.tolist()})
            for id, descriptor, map in zip(ids, descriptors, maps, strict=True)
        )
        self.client.upload_points(self.collection, points, batch_size=POINTS_AT_ONCE, wait=True)

    def search(self, descriptors: Any, limit: int, **options: Any) -> list[list[Any]]:
        """The ids of the nearest points to each descriptor; `options` are Qdrant's, such as a `filter`."""
        options |= {"using": DESCRIPTOR, "limit": limit}
        queries = [models.QueryRequest(query=row.tolist(), **options) for row in descriptors]
        answers = self.client.query_batch_points(self.collection, queries)
        return [[point.id for point in answer.points] for answer in answers]

    def features(self, ids: list[Any]) -> dict[Any, tuple[Any, Any]]:
        given, found = {str(id): id for id in ids}, {}
        for point in self.client.retrieve(self.collection, ids, with_payload=False, with_vectors=True):
            vectors: Any = point.vector
            tokens = np.array(vectors[MAP], np.float32)
            side = isqrt(len(tokens))  # a map is square, as the network's input is
            found[given[str(point.id)]] = vectors[DESCRIPTOR], tokens.T.reshape(-1, side, side)
        return found
