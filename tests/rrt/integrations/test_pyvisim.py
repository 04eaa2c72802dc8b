import numpy as np
import pytest
from PIL import Image

from rrt import InputError

adapter = pytest.importorskip("docs.integrations.for_pyvisim")


def test_a_search_is_reranked(reranker, paths, monkeypatch):
    from pyvisim.retrieval.image_store import InMemoryImageEmbeddingStore

    names, query, features = list(map(str, paths)), np.asarray(Image.open(paths[0])), reranker.embed(paths)
    store = InMemoryImageEmbeddingStore(names, adapter.DescriptorEmbedder(reranker), lazy_build=False)
    (found,) = store.retrieve_top_k_similar(query, k=5)
    distances = 1 - features.descriptors @ features.descriptors[0]
    assert [each.path for each in found] == [names[i] for i in distances.argsort()[:5]]
    np.testing.assert_allclose([each.score for each in found], distances.sort().values[:5], atol=1e-5)

    expected = reranker.rerank(query, features, [names.index(each.path) for each in found])
    by_match = adapter.TransformerReranker(reranker)
    best = by_match.rerank(found, 3, query)
    assert [each.path for each in best] == [names[i] for i in expected.positions[0, :3]]
    assert np.array_equal([each.score for each in best], expected.scores[0, :3])
    assert best != found[:3]

    monkeypatch.setattr(reranker, "embed", None)  # each photo is embedded once
    again = by_match.rerank(found, 9, features[0])
    assert again[:3] == best and len(again) == 5
    assert by_match.rerank([], 1, features[0]) == []


def test_what_cannot_be_reranked(reranker, paths):
    by_match = adapter.TransformerReranker(reranker)
    with pytest.raises(ValueError, match="top_k"):
        by_match.rerank([adapter.Candidate(str(paths[0]), 0.5)], 0, paths[0])
    with pytest.raises(InputError, match=r"photo gone\.jpg does not exist"):
        by_match.rerank([adapter.Candidate("gone.jpg", 0.5)], 1, paths[0])
