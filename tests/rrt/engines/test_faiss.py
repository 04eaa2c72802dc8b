import faiss
import numpy as np
import pytest

from rrt import Features, InputError
from rrt.engines.faiss import FaissStore


def test_a_search_of_faiss(reranker, paths, tmp_path):
    features = reranker.embed(paths)
    index = faiss.IndexFlatIP(16)
    index.add(features.descriptors.numpy())
    np.save(tmp_path / "maps.npy", features.maps.numpy())
    stored = Features(features.descriptors.numpy(), np.load(tmp_path / "maps.npy", mmap_mode="r"))
    _, neighbours = index.search(features.descriptors[:2].numpy(), 9)
    expected = reranker.rerank(features[:2], features, neighbours)
    ranked = reranker.rerank_ids(features[:2], neighbours, FaissStore(index, stored))
    assert np.array_equal(ranked.scores, expected.scores) and np.array_equal(ranked.ids, expected.positions)
    assert ranked.ids[0][7:] == [-1, -1] and ranked.missing == []

    of_ids = faiss.IndexIDMap(faiss.IndexFlatIP(16))
    of_ids.add_with_ids(features.descriptors.numpy(), 1000 - 7 * np.arange(7))
    _, ids = of_ids.search(features.descriptors[:2].numpy(), 9)
    ranked = reranker.rerank_ids(features[:2], ids, FaissStore(of_ids, stored))
    assert np.array_equal(ranked.scores, expected.scores)
    assert np.array_equal(ranked.ids, np.where(expected.positions < 0, -1, 1000 - 7 * expected.positions))
    assert reranker.rerank_ids(features[0], [[1001, 1000]], FaissStore(of_ids, stored)).missing == [1001]


def test_features_of_another_index(reranker, paths):
    features = reranker.embed(paths[:2])
    with pytest.raises(InputError, match=r"index of 0 vectors of 16 numbers has not the descriptors \(2, 16\)"):
        FaissStore(faiss.IndexFlatIP(16), features)
