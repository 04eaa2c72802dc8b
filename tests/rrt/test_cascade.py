"""`fusion='cascade'`: the matcher scores the candidates near the best alone."""

import numpy as np
import pytest
import torch

from models.matcher import Matcher
from rrt import Features, InputError, Reranker
from rrt.__main__ import main
from rrt.index import Index, update
from tests.rrt.test_own_weights import OWN, of_photos, plain_scores, with_weights

MARGIN = 0.05


@pytest.fixture
def checkpoint(content, tmp_path):
    return with_weights(content, tmp_path / "own.pt", OWN._replace(margin=MARGIN))


@pytest.fixture
def own(checkpoint) -> Reranker:
    return Reranker.from_pretrained(checkpoint, device="cpu")


@pytest.fixture
def scored(monkeypatch) -> list[int]:
    """The numbers of pairs that the matcher scores at a time."""
    numbers: list[int] = []
    score = Matcher.score

    def counted(self, query, *others):
        numbers.append(len(query))
        return score(self, query, *others)

    monkeypatch.setattr(Matcher, "score", counted)
    return numbers


def expected(reranker, query, candidates) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the candidates, and which are near the best."""
    logits, cosines, chamfer = (part.numpy() for part in plain_scores(reranker, query, candidates))
    first = OWN.cosine * cosines + OWN.chamfer * chamfer
    near = first.max() - first <= MARGIN
    return first + np.where(near, logits, logits[near].min()), near


def test_rank(own, paths, scored):
    query, candidates = own.embed(paths[0]), own.embed(paths[1:])
    scores, near = expected(own, query, candidates)
    assert 0 < near.sum() < 6
    scored.clear()
    matches = own.rank(query, candidates, fusion="cascade")
    assert sum(scored) == near.sum()
    np.testing.assert_allclose(of_photos(matches), scores, atol=1e-5)
    assert [match.score for match in matches] == sorted(of_photos(matches), reverse=True)
    for match in matches:
        assert (match.logit is not None) == (match.probability is not None) == near[match.index]
    whole = {match.index: match for match in own.rank(query, candidates)}
    for match in matches[: near.sum()]:
        assert match.score == pytest.approx(whole[match.index].score, abs=1e-5)
        assert match.probability == pytest.approx(whole[match.index].probability, abs=1e-5)


def test_rerank_with_padding(own, paths, scored):
    features = own.embed(paths)
    neighbours = np.array([[1, -1, 2, 3, 4], [5, 6, 0, -1, -1], [-1] * 5])
    ranking = own.rerank(features[:3], features, neighbours, fusion="cascade")
    number = sum(scored)
    for i in range(2):
        positions = neighbours[i][neighbours[i] >= 0]
        scores, near = expected(own, features[i], features[positions])
        number -= near.sum()
        order = np.argsort(-scores, kind="stable")
        assert ranking.positions[i].tolist() == [*positions[order], *[-1] * (5 - len(order))]
        np.testing.assert_allclose(ranking.scores[i, : len(order)], scores[order], atol=1e-5)
    assert number == 0
    assert (ranking.positions[2] == -1).all() and np.isneginf(ranking.scores[ranking.positions == -1]).all()


def test_score_is_that_of_each_pair(own, paths):
    features = own.embed(paths)
    torch.testing.assert_close(own.score(features, features, fusion="cascade"), own.score(features, features))


@pytest.mark.parametrize("fitted", [None, OWN, OWN._replace(logit=0.0)])
def test_a_network_without_a_margin(content, reranker, paths, tmp_path, fitted):
    if fitted is not None:
        reranker = Reranker.from_pretrained(with_weights(content, tmp_path / "plain.pt", fitted), device="cpu")
    with pytest.raises(InputError, match=r"^fusion='cascade': the network has no weights .* leave the cascade out$"):
        reranker.rank(paths[0], paths[1:], fusion="cascade")


def test_search(own, checkpoint, paths, tmp_path, capsys):
    index = tmp_path / "index"
    update(index, paths, own)
    query = own.embed(paths[0])
    (results,) = Index(index, device="cpu").search(query, 7, 7, "cascade")
    gallery = Features(*own.embed(paths))
    matches = own.rank(query, gallery, fusion="cascade")
    assert [result.photo for result in results] == [str(paths[match.index]) for match in matches]
    assert [result.logit is None for result in results] == [match.logit is None for match in matches]
    capsys.readouterr()
    assert main(["search", str(index), str(paths[0]), "--cascade"]) == 0
    assert capsys.readouterr().out.startswith(
        "reranked by logit + 3 * cosine + 2 * chamfer, 3 candidates, logit only within 0.05 of the best, fitted on val"
    )
    assert main(["search", str(index), str(paths[0]), "--cascade", "--rerank", "0"]) == 1
    assert capsys.readouterr().err == "--fusion and --cascade need reranking: leave them out, or --rerank 0\n"
