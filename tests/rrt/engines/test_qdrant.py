import uuid

import numpy as np
import pytest

qdrant = pytest.importorskip("rrt.engines.qdrant")


@pytest.mark.parametrize("ids", [range(10, 17), [str(uuid.UUID(int=i)) for i in range(7)]], ids=["numbers", "UUIDs"])
def test_a_search_of_qdrant(reranker, paths, ids):
    features = reranker.embed(paths)
    store = qdrant.QdrantStore(qdrant.QdrantClient(":memory:"), "photos")
    store.add(ids[:4], features[:4])
    store.add(ids[2:], features[2:])  # some of them again
    found = store.search(features.descriptors[:2], 5)
    nearest = (features.descriptors[:2] @ features.descriptors.T).topk(5)
    cosines = features.descriptors @ features.descriptors[0]
    np.testing.assert_allclose([cosines[list(ids).index(id)] for id in found[0]], nearest.values[0], atol=1e-6)

    rows = [[list(ids).index(id) for id in row] for row in found]
    expected = reranker.rerank(features[:2], features, rows, (20, 10))
    ranked = reranker.rerank_ids(features[:2], found, store, (20, 10))
    assert np.array_equal(ranked.scores, expected.scores)
    assert ranked.ids == [[ids[i] for i in row] for row in expected.positions]


def test_ids_that_are_not_there(reranker, paths):
    features, unknown = reranker.embed(paths[:3]), uuid.UUID(int=5)
    store = qdrant.QdrantStore(qdrant.QdrantClient(":memory:"), "photos")
    store.add([1, uuid.UUID(int=2), 3], features)
    ranked = reranker.rerank_ids(features[0], [[7, uuid.UUID(int=2), unknown]], store)
    assert ranked.ids == [[uuid.UUID(int=2), 7, unknown]] and ranked.missing == [7, unknown]
    only = qdrant.models.Filter(must=[qdrant.models.HasIdCondition(has_id=[3])])
    assert store.search(features.descriptors[:1], 2, filter=only) == [[3]]
