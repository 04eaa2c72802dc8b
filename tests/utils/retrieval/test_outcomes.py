import numpy as np
import pytest

from tests.utils.retrieval.test_fusion import RELEVANT, drawn
from utils.retrieval.crossfit import grid, matches_of
from utils.retrieval.measures import measures_of, relevant_of
from utils.retrieval.outcomes import outcomes
from utils.retrieval.ranking import ranking_by
from utils.retrieval.results import Labels


@pytest.mark.parametrize("with_logits", [True, False])
@pytest.mark.parametrize("block", [7, 2048])
def test_outcomes_are_those_of_the_rankings(with_logits, block, monkeypatch):
    monkeypatch.setattr("utils.retrieval.outcomes.BLOCK", block)
    candidates, _, matches = drawn(with_logits=with_logits)
    candidates.chamfer[::3] = candidates.chamfer[::3].round(1)  # equal scores
    matches[5] = False
    choices = [*grid(9, with_logits), *grid(4, with_logits)]
    assert len(set(choices)) > 5
    results = outcomes(candidates, matches, RELEVANT, choices)
    for i, weights in enumerate(choices):
        ranked = ranking_by(candidates, weights).positions[:, :9]
        for query, row in enumerate(ranked):
            hits = [matches[query, list(candidates.neighbours[query]).index(position)] for position in row]
            assert results.hits[i, query] == hits[0]
            assert results.unchanged[i, query] == (row[0] == candidates.neighbours[query, 0])
            r = RELEVANT[query]
            expected = sum(np.mean(hits[: place + 1]) for place in range(min(r, 9)) if hits[place]) / max(r, 1)
            assert results.precisions[i, query] == pytest.approx(expected, abs=1e-6)


def test_precisions_are_those_of_the_measures():
    candidates, classes, _ = drawn(queries=300, columns=9, classes=40)
    labels = Labels(classes, classes, True)
    matches, relevant = matches_of(candidates, labels), relevant_of(*labels)
    choices = grid(9, True)
    means = 100 * outcomes(candidates, matches, relevant, choices).precisions.mean(axis=1)
    for weights, mean in zip(choices, means, strict=True):
        measured = measures_of(ranking_by(candidates, weights).positions, classes, classes, [1], True)
        assert measured.values["mAP@R"] == pytest.approx(mean, abs=0.006)
