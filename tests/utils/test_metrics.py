import numpy as np
import pytest
import torch

from tests.reference import ANSWERS, assert_answer, integers, normal, published_model
from utils.metrics import recall_at_ks, recall_at_ks_rerank
from utils.retrieval import measures as measures_module
from utils.retrieval.measures import measures_of, recalls_of


@pytest.mark.parametrize("cosine", [True, False])
@pytest.mark.parametrize("tag", ["self", "gallery"])
def test_global_recalls_equal_published(tag, cosine):
    gallery = {"gallery_features": normal("knn.g", 40, 16), "gallery_labels": integers("knn.gl", 12, 40)}
    recalls, distances, positions = recall_at_ks(
        normal("knn.q", 60, 16),
        integers("knn.ql", 12, 60),
        [1, 10, 20],
        cosine=cosine,
        **(gallery if tag == "gallery" else {}),
    )
    key = f"knn.{tag}.{'cosine' if cosine else 'l2'}"
    assert_answer([recalls[k] for k in (1, 10, 20)], f"{key}.recall", 1e-9)
    assert_answer(distances, f"{key}.dists", 1e-5)
    assert (positions == ANSWERS[f"{key}.inds"]).mean() > 0.99


def test_reranked_recalls_equal_published():
    recalls, scores, positions = recall_at_ks_rerank(
        normal("rr.local", 30, 128, 3, 3),
        integers("rr.labels", 6, 30),
        [1, 5, 10],
        published_model(6).eval(),
        torch.from_numpy(ANSWERS["rerank.cache"]),
    )
    assert_answer([recalls[k] for k in (1, 5, 10)], "rerank.recall", 1e-9)
    assert_answer(scores, "rerank.scores", 1e-4)
    assert (positions == ANSWERS["rerank.inds"]).mean() > 0.99


def test_recalls_are_plain_rounded_numbers():
    labels = torch.tensor([0, 0, 1])
    recalls, _, positions = recall_at_ks(torch.tensor([[0.0], [1.0], [5.0]]), labels, [1, 1000])
    assert recalls == {1: 66.67, 1000: 66.67}
    assert [type(value) for value in recalls.values()] == [float, float]
    assert positions.shape == (3, 2)


def test_padding_is_no_hit():
    features, labels = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([0, 1, 2])
    recalls, _, _ = recall_at_ks(features, labels, [10], features[:2] + 9, torch.tensor([5, 2]))
    assert recalls == {10: 33.33}


def test_self_match_is_dropped_among_duplicates():
    features = torch.tensor([[1.0, 0], [1, 0], [0, 1]])
    recalls, _, positions = recall_at_ks(features, torch.tensor([0, 0, 1]), [1])
    assert positions[:2, 0].tolist() == [1, 0]
    assert recalls == {1: 66.67}


def test_one_gallery_argument_needs_the_other():
    features, labels = torch.randn(3, 4), torch.arange(3)
    for arguments in ({"gallery_features": features}, {"gallery_labels": labels}):
        with pytest.raises(ValueError, match="one was given without the other"):
            recall_at_ks(features, labels, [1], **arguments)
        with pytest.raises(ValueError, match="one was given without the other"):
            recall_at_ks_rerank(features, labels, [1], torch.nn.Linear(1, 1), torch.zeros(3, 1), **arguments)


def test_knn_index_is_passed_on(capsys):
    features, labels = torch.randn(200, 8), torch.arange(200) // 4
    exact = recall_at_ks(features, labels, [1, 5], cosine=True)
    found = recall_at_ks(features, labels, [1, 5], cosine=True, knn_index="IVF4,Flat;nprobe=4")
    assert found[0] == exact[0]
    np.testing.assert_array_equal(found[2], exact[2])
    assert "knn_index=IVF4,Flat;nprobe=4: finds 100.0 %" in capsys.readouterr().out


@pytest.mark.parametrize("block", [4096, 7])
def test_ranks_equal_plain_count(monkeypatch, block):
    monkeypatch.setattr(measures_module, "BLOCK", block)
    rng = np.random.default_rng(0)
    features, labels = torch.from_numpy(rng.normal(size=(40, 4))).float(), torch.from_numpy(rng.integers(0, 9, 40))
    recalls, _, positions = recall_at_ks(features, labels, [1, 3, 39])
    for k, recall in recalls.items():
        hits = sum(any(labels[j] == labels[i] for j in row[:k]) for i, row in enumerate(positions))
        assert recall == round(100 * hits / 40, 2)


def plain_measures(positions, query_labels, gallery_labels, is_self_search):
    """mAP@R, R-precision and MRR in %, query by query; queries without others of their class left out."""
    maps, precisions, ranks = [], [], []
    for row, label in zip(positions, query_labels, strict=True):
        r = sum(other == label for other in gallery_labels) - is_self_search
        if not r:
            continue
        hits = [gallery_labels[position] == label for position in row]
        precision_at = [sum(hits[:i]) / i for i in range(1, len(hits) + 1)]
        maps.append(sum(precision_at[i] for i in range(min(r, len(hits))) if hits[i]) / r)
        precisions.append(sum(hits[:r]) / r)
        ranks.append(next((1 / (i + 1) for i, hit in enumerate(hits) if hit), 0.0))
    return [round(100 * sum(values) / max(len(values), 1), 2) for values in (maps, precisions, ranks)]


@pytest.mark.parametrize("is_self_search", [True, False])
@pytest.mark.parametrize("columns", [1, 6, 25])
@pytest.mark.parametrize("block", [4096, 28])
def test_measures_equal_plain_count(monkeypatch, is_self_search, columns, block):
    monkeypatch.setattr(measures_module, "BLOCK", block)
    rng = np.random.default_rng(columns)
    query_labels = np.sort(rng.integers(0, 12, 40))
    query_labels[:2] = 12, 13  # alone in their classes
    gallery_labels = query_labels if is_self_search else rng.integers(0, 9, 50)
    positions = np.stack([rng.permutation(len(gallery_labels))[:columns] for _ in range(40)])
    measures = measures_of(positions, query_labels, gallery_labels, [1, 5], is_self_search)
    expected = plain_measures(positions, query_labels, gallery_labels, is_self_search)
    assert [measures.values[name] for name in ("mAP@R", "R-precision", "MRR")] == expected
    recalls = recalls_of(positions, torch.from_numpy(query_labels), torch.from_numpy(gallery_labels), [1, 5])
    assert [measures.values["R@1"], measures.values["R@5"]] == list(recalls.values())
    relevant = [(gallery_labels == label).sum() - is_self_search for label in query_labels]
    assert measures.without_others == relevant.count(0) > 0
    assert measures.cut_short == sum(r > columns for r in relevant)


def test_perfect_and_worst_rankings():
    labels = np.array([0, 0, 0, 1, 1, 1])
    perfect = np.array([[1, 2, 3], [0, 2, 3], [0, 1, 3], [4, 5, 0], [3, 5, 0], [3, 4, 0]])
    hopeless = np.array([[3, 4, 5]] * 3 + [[0, 1, 2]] * 3)
    assert set(measures_of(perfect, labels, labels, [1], True).values.values()) == {100.0}
    assert set(measures_of(hopeless, labels, labels, [1], True).values.values()) == {0.0}
