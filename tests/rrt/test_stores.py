import uuid

import numpy as np
import pytest
import torch

from rrt import Features, InputError


class Store(dict):
    """Features by id, and what was asked for."""

    def features(self, ids):
        self.asked = ids
        return {id: self[id] for id in reversed(ids) if id in self}  # in any order


@pytest.fixture(scope="module")
def features(reranker, photos) -> Features:
    return reranker.embed(sorted(photos.glob("toy_final/*.JPG"))[:7])


def stored(features, ids) -> Store:
    return Store(zip(ids, zip(*features, strict=True), strict=True))


KINDS = {
    "text": [f"photo {i}" for i in range(7)],
    "numbers": [10**12 - i for i in range(7)],
    "UUIDs": [uuid.UUID(int=i) for i in range(7)],
    "tuples": [("shop", i) for i in range(7)],
}


@pytest.mark.parametrize("ids", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("fusion", ["fitted", (3, 2)])
def test_scores_are_those_of_rerank(reranker, features, ids, fusion):
    rows = np.array([[3, 5, 0, 6, 1], [-1, 2, 4, 2, -1]])
    expected = reranker.rerank(features[:2], features, rows, fusion)
    given = [[ids[i] for i in rows[0]], [None, ids[2], ids[4], ids[2], "unknown"]]
    ranked = reranker.rerank_ids(features[:2], given, stored(features, ids), fusion)
    assert np.array_equal(np.stack(ranked.scores), expected.scores) and ranked.scores[0].dtype == np.float32
    assert ranked.ids[0] == [ids[i] for i in expected.positions[0]]
    assert ranked.ids[1] == [*(ids[i] for i in expected.positions[1, :3]), None, "unknown"]
    assert ranked.missing == ["unknown"]


def test_rows_of_any_length(reranker, features):
    store = stored(features, KINDS["text"])
    a, b, c = KINDS["text"][:3]
    scores, ids, missing = reranker.rerank_ids(features[:4], [[c], [], ["x", -1, b, "y", a], ["y"]], store)
    assert store.asked == [c, "x", b, "y", a]
    assert [len(of_query) for of_query in scores] == [1, 0, 5, 1]
    assert ids[:2] == [[c], []] and set(ids[2][:2]) == {a, b} and ids[2][2:] == ["x", -1, "y"] and ids[3] == ["y"]
    assert np.isneginf(scores[2]).tolist() == [False, False, True, True, True] and np.isneginf(scores[3]).all()
    assert missing == ["x", "y"]
    assert scores[0][0] == pytest.approx(reranker.score(features[0], features[2]).item(), abs=1e-5)


def test_nothing_is_known(reranker, features, paths):
    for rows in ([[-1, None, "x"]], [[]]):
        scores, ids, missing = reranker.rerank_ids(paths[0], rows, Store())
        assert np.isneginf(scores[0]).all() and ids == rows and missing == rows[0][2:]
    assert reranker.rerank_ids(features[:0], [], Store()) == ([], [], [])


def test_ids_as_faiss_and_torch_have_them(reranker, features):
    rows = [[4, 1, -1], [2, -1, -1]]
    expected = reranker.rerank_ids(features[:2], rows, stored(features, range(7)), "logit")
    for given in (np.array(rows), torch.tensor(rows), tuple(map(iter, rows))):
        ranked = reranker.rerank_ids(features[:2], given, stored(features, range(7)), "logit")
        assert ranked.ids == expected.ids and type(ranked.ids[0][0]) is int
        assert all(map(np.array_equal, ranked.scores, expected.scores))


def test_features_of_any_precision(reranker, features):
    halves = Features(*(part.half() for part in features))
    expected = reranker.rerank(features[0], halves, [1, 2, 3]).scores[0]
    as_lists = zip(halves.descriptors.tolist(), halves.maps.tolist(), strict=True)
    for store in (
        stored(halves, range(7)),
        stored([part.numpy() for part in halves], range(7)),
        dict(enumerate(as_lists)),
    ):
        assert np.array_equal(reranker.rerank_ids(features[0], [[1, 2, 3]], Store(store)).scores[0], expected)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["a"], "ids: 'a' is no list: give 1 lists of ids, one for each query"),
        ([3], "ids: 3 is no list"),
        ([["a"], ["b"]], "ids are 2 lists: give 1 lists"),
        ([[["a"]]], r"id \['a'\] cannot be hashed"),
        ([["a", "nan"]], "the features of id 'nan' hold NaN"),
        ([["a", "flat"]], r"has features \[\(16,\), \(2, 9\)\] of id 'flat': give a descriptor"),
        ([["a", "small"]], r"\(8,\), .* of id 'small': .* those of id 'a' are \[\(16,\), "),
        ([["small"]], "features of descriptors .* are not of this network"),
    ],
)
def test_refuses_what_does_not_fit(reranker, features, ids, message):
    descriptor, map = features.descriptors[0], features.maps[0]
    store = Store(
        a=(descriptor, map), nan=(descriptor * np.nan, map), flat=(descriptor, map[:2, 0].repeat(1, 9)[:, :9])
    )
    store["small"] = (descriptor[:8], map)
    with pytest.raises(InputError, match=message):
        reranker.rerank_ids(features[0], ids, store)
