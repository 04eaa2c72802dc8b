"""Rankings in a cascade, whose logits are those of candidates near the best, and the choice of its margin."""

import numpy as np
import pytest
import torch

from tests.utils.retrieval.test_fusion import drawn, saturated
from tests.utils.retrieval.test_pair_scoring import Model, stored
from utils.errors import InputError
from utils.retrieval import pair_scoring
from utils.retrieval.chamfer import Chamfer
from utils.retrieval.fitted import CHANGED, PLACES, fit, margin_of
from utils.retrieval.pair_scoring import pair_scores
from utils.retrieval.ranking import Candidates, Weights, in_margin, ranking_by


@pytest.mark.parametrize("margin", [0.0, 0.7, 3.0, 1000.0])
@pytest.mark.parametrize("m", [1, 6, 9, 50])
def test_ranking_equals_plain_loop(margin, m):
    candidates, _, _ = drawn()
    weights = Weights(1, 20, 5, m, margin)
    unscored = candidates._replace(logits=candidates.logits.copy())
    is_in, m = in_margin(candidates, weights), min(m, 9)
    unscored.logits[:, :m][~is_in] = np.nan  # they are not needed
    ranking = ranking_by(unscored, weights)
    for i, row in enumerate(candidates.neighbours):
        first = [20 * float(candidates.cosines[i, j]) + 5 * float(candidates.chamfer[i, j]) for j in range(m)]
        near = [j for j in range(m) if max(first) - first[j] <= margin]
        assert is_in[i].nonzero()[0].tolist() == near
        lowest = min(float(candidates.logits[i, j]) for j in near)
        scores = [first[j] + (float(candidates.logits[i, j]) if j in near else lowest) for j in range(m)]
        order = sorted(range(m), key=lambda j, scores=scores: -scores[j])
        assert set(order[: len(near)]) == set(near)  # the others stay behind
        assert ranking.positions[i].tolist() == [*row[order], *row[m:]]
        np.testing.assert_allclose(ranking.scores[i, :m], [scores[j] for j in order], atol=1e-5)
    if margin == 1000:
        assert (ranking.positions == ranking_by(candidates, weights._replace(margin=np.inf)).positions).all()


def test_margin_keeps_first_results():
    candidates, _, _ = drawn(queries=1000, classes=100)
    weights = Weights(1, 20, 5, 7)
    margin = margin_of(candidates, weights)
    places = ranking_by(candidates, weights).positions[:, :PLACES]

    def changed(margin: float) -> float:
        """How many first results change, of the queries whole, and without their first results."""
        number, left = 0, candidates
        for place in range(PLACES):
            first = ranking_by(left, weights._replace(margin=margin, num_candidates=7 - place)).positions[:, 0]
            number += (first != places[:, place]).sum()
            kept = left.neighbours != places[:, place, None]
            left = Candidates(
                left.neighbours[kept].reshape(1000, -1),
                *(scores[kept[:, : scores.shape[1]]].reshape(1000, -1) for scores in left[1:]),
            )
        return number / (PLACES * 1000)

    assert changed(margin + 1e-6) <= CHANGED < changed(margin - 1e-6)
    assert changed(np.inf) == 0 < changed(0)
    assert 0.1 < in_margin(candidates, weights._replace(margin=margin)).mean() < 0.9


def test_margin_of_fewer_candidates_than_places():
    candidates, _, _ = drawn()
    assert margin_of(candidates, Weights(1, 20, 5, 1)) == 0
    assert margin_of(candidates, Weights(1, 0, 0, 50)) == 0


def test_fitted_margin():
    candidates, labels = saturated(0, 6)
    fitted = fit(candidates, labels, True, "val.txt")
    assert fitted.margin == margin_of(candidates, fitted.weights)
    assert fitted.cascade == fitted.weights._replace(margin=fitted.margin)
    without = fit(candidates, labels, False, "val.txt")
    assert without.margin is None and without.cascade is None
    assert fit(*saturated(0, 0), True, "val.txt").margin is None  # ranks by the cosine
    assert fitted._replace(logit=0.0).cascade is None


def test_text():
    assert (
        str(Weights(1, 20, 0, 50, 3.14159)) == "logit + 20 * cosine, 50 candidates, logit only within 3.14 of the best"
    )


@pytest.mark.parametrize("in_file", [False, True])
def test_scores_among_pairs(monkeypatch, tmp_path, in_file, device):
    monkeypatch.setitem(pair_scoring.PAIRS_AT_ONCE, device.type, 4)
    monkeypatch.setitem(pair_scoring.BLOCK_BYTES, device.type, 4000)
    maps, model, neighbours = torch.randn(30, 16, 3, 2), Model().to(device), torch.randint(0, 30, (11, 6))
    gallery = stored(tmp_path / "maps", maps) if in_file else maps
    scorers = [model.matcher, Chamfer()]
    among = torch.rand(11, 6) < 0.4
    among[[0, 4, 10]] = False
    complete = pair_scores(model, maps[:11], maps, neighbours, scorers)
    selected = pair_scores(model, maps[:11], gallery, neighbours, scorers, among=among)
    for found, expected in zip(selected, complete, strict=True):
        torch.testing.assert_close(found, expected.where(among, torch.nan), rtol=0, atol=1e-5, equal_nan=True)
    (nothing,) = pair_scores(model, maps[:11], gallery, neighbours, [Chamfer()], among=torch.zeros_like(among))
    assert nothing.isnan().all()
    maps[3] = torch.nan
    neighbours[:] = 1
    neighbours[2, 5] = 3
    with pytest.raises(InputError, match=r"^the score of query 2 with its candidate 5 is NaN or"):
        pair_scores(model, maps[:11], maps, neighbours, [model.matcher])
    among[:] = True
    among[3] = among[2, 5] = False
    pair_scores(model, maps[:11], maps, neighbours, [model.matcher], among=among)
