import numpy as np
import pytest

from rrt import Features, InputError

engine = pytest.importorskip("rrt.engines.lancedb")

NAMES = np.array(list("abcdefg"))


@pytest.fixture(scope="module")
def features(reranker, photos) -> Features:
    descriptors, maps = reranker.embed(sorted(photos.glob("toy_final/*.JPG"))[:7])
    return Features(descriptors, maps.half())  # as an index keeps them


@pytest.fixture
def table(features, tmp_path):
    columns = {"path": NAMES, "text": [f"photo {name}" for name in NAMES]}
    for name, values in (("descriptor", features.descriptors), ("map", features.maps)):
        columns[name] = engine.pa.FixedSizeListArray.from_arrays(values.flatten().numpy(), values[0].numel())
    return engine.lancedb.connect(tmp_path).create_table("photos", engine.pa.table(columns))


def search(table, features, **options):
    return table.search(features.descriptors[0].numpy(), vector_column_name="descriptor", **options)


def check(results, reranker, query, features, fusion="fitted"):
    """Whether results are ranked by the scores of `rerank`."""
    given = [list(NAMES).index(name) for name in results["path"].to_pylist()]
    alone = reranker.rerank(query, features, sorted(given), fusion)
    np.testing.assert_allclose(results["_relevance_score"].to_numpy(), alone.scores[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("fusion", ["fitted", (20, 10)])
def test_a_vector_search(reranker, features, table, fusion):
    found = search(table, features).limit(5).to_arrow()["path"].to_pylist()
    expected = reranker.rerank(features[0], features, [list(NAMES).index(name) for name in found], fusion)
    by_match = engine.MatchReranker(reranker, features[0], fusion)
    results = search(table, features).limit(5).rerank(by_match, "photo").to_arrow()
    assert np.array_equal(results["_relevance_score"].to_numpy(), expected.scores[0])
    assert results["path"].to_pylist() == NAMES[expected.positions[0]].tolist()
    assert "_distance" not in results.column_names
    some = (
        search(table, features)
        .where("path > 'c'")
        .select(["path", "descriptor", "map"])
        .rerank(by_match, "photo")
        .to_arrow()
    )
    assert some.num_rows == 4
    check(some, reranker, features[0], features, fusion)


def test_text_and_hybrid_searches(reranker, features, table, paths):
    table.create_index("text", config=engine.lancedb.index.FTS())
    by_match = engine.MatchReranker(reranker, paths[0])
    everything = engine.MatchReranker(reranker, paths[0], return_score="all")
    check(table.search("photo", query_type="fts").rerank(by_match).to_arrow(), reranker, paths[0], features)
    for reranking, is_kept in ((by_match, False), (everything, True)):
        hybrid = table.search(query_type="hybrid", vector_column_name="descriptor", fts_columns="text")
        results = hybrid.vector(features.descriptors[0].numpy()).text("photo").limit(4).rerank(reranking).to_arrow()
        assert ({"_distance", "_score"} <= set(results.column_names)) is is_kept
        check(results, reranker, paths[0], features)


def test_nothing_found_and_nothing_selected(reranker, features, table):
    by_match = engine.MatchReranker(reranker, features[0])
    nothing = search(table, features).where("path = 'x'").rerank(by_match, "photo").to_arrow()
    assert nothing.num_rows == 0 and "_relevance_score" in nothing.column_names
    with pytest.raises(InputError, match=r"select 'descriptor' and 'map', too"):
        search(table, features).select(["path"]).rerank(by_match, "photo").to_arrow()
