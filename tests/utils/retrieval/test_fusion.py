"""Fused rankings, and weights chosen on other classes, against plain loops."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from utils.errors import InputError
from utils.retrieval.crossfit import choose, crossfit, fit_weights, folds, grid
from utils.retrieval.measures import measures_of
from utils.retrieval.outcomes import Outcomes, outcomes
from utils.retrieval.ranking import Candidates, Weights, fused_scores, ranking_by
from utils.retrieval.results import Labels

RELEVANT = np.arange(60) % 5


def drawn(seed=0, queries=60, columns=12, scored=9, classes=12, useful=2.0, with_logits=True):
    """Candidates of which every third matches, with a logit that tells `useful` of it."""
    rng = np.random.default_rng(seed)
    labels = np.arange(queries) % classes
    neighbours = np.stack([rng.permutation(queries)[:columns] for _ in range(queries)])
    matches = rng.random((queries, scored)) < 0.3
    cosines, chamfer, logits = (rng.normal(size=(queries, scored)).astype(np.float32) for _ in range(3))
    cosines = -np.sort(-cosines, axis=1) / 10
    logits = (logits + useful * matches).astype(np.float32)
    return Candidates(neighbours, cosines, chamfer / 10, logits if with_logits else None), labels, matches


@pytest.mark.parametrize(
    "weights", [Weights(1, 0, 0, 9), Weights(1, 20, 5, 4), Weights(0, 0.5, 1, 1), Weights(1, math.inf, 0, 9)]
)
def test_rankings_equal_plain_loop(weights):
    candidates, _, _ = drawn()
    ranking = ranking_by(candidates, weights)
    for i, row in enumerate(candidates.neighbours):
        scores = [
            weights.logit * float(candidates.logits[i, j])
            + weights.cosine * float(candidates.cosines[i, j])
            + weights.chamfer * float(candidates.chamfer[i, j])
            if math.isfinite(weights.cosine)
            else -j
            for j in range(9)
        ]
        m = weights.num_candidates
        order = sorted(range(m), key=lambda j, scores=scores: -scores[j])
        assert ranking.positions[i].tolist() == [*row[order], *row[m:]]
        np.testing.assert_allclose(ranking.scores[i, :m], [scores[j] for j in order], atol=1e-5)
        assert (ranking.scores[i, m:] == -np.inf).all()
    assert (ranking.scores.dtype, ranking.positions.dtype) == (np.float32, np.int64)


def test_logits_alone_are_unchanged():
    candidates, _, _ = drawn()
    assert (fused_scores(candidates, Weights(1, 0, 0, 9)) == candidates.logits).all()


def test_nan_and_negative_zero_sort_like_torch():
    candidates, _, matches = drawn()
    logits = candidates.logits.copy()
    logits[:, 3], logits[5] = np.nan, -0.0
    candidates = candidates._replace(logits=logits)
    ranking = ranking_by(candidates, Weights(1, 0, 0, 9))
    expected, order = torch.from_numpy(logits).sort(dim=1, descending=True, stable=True)
    assert ranking.scores[:, :9].tobytes() == expected.numpy().tobytes()
    assert (ranking.positions[:, :9] == np.take_along_axis(candidates.neighbours[:, :9], order.numpy(), axis=1)).all()
    choices = grid(9, True)
    for weights, hits in zip(choices, outcomes(candidates, matches, RELEVANT, choices).hits, strict=True):
        place = (candidates.neighbours == ranking_by(candidates, weights).positions[:, :1]).argmax(axis=1)
        assert (hits == matches[np.arange(60), place]).all()


def test_equal_scores_keep_their_order():
    candidates, _, _ = drawn()
    even = candidates._replace(logits=np.zeros_like(candidates.logits))
    assert (ranking_by(even, Weights(1, 0, 0, 9)).positions == even.neighbours).all()


def near_plainly(values, classes, among):
    """The choices within one standard error of the best, the first within two, by loops and fractions."""
    best = max(among, key=lambda i: (sum(values[i]), -i))
    near = []
    for i in among:
        lost = [sum(values[best][q] - values[i][q] for q in np.flatnonzero(classes == c)) for c in set(classes)]
        total, n = sum(lost), len(lost)
        errors = 1 if i else 2
        if total**2 <= errors**2 * Fraction(n, n - 1) * sum((x - Fraction(total, n)) ** 2 for x in lost):
            near.append(i)
    return near


def test_choice_equals_plain_rule():
    rng, by_precision = np.random.default_rng(1), 0
    for _ in range(40):
        hits, unchanged = rng.random((6, 80)) < np.linspace(0.4, 0.65, 6)[:, None], rng.random((6, 80)) < 0.5
        precisions = (rng.integers(0, 65, (6, 80)) / 64).astype(np.float32)
        classes = rng.integers(0, 9, 80)
        near = near_plainly(hits.astype(int), classes, range(6))
        near_both = near_plainly([[Fraction(float(x)) for x in row] for row in precisions], classes, near)
        expected = max(near_both, key=lambda i: (unchanged[i].sum(), -i))
        assert choose(Outcomes(hits, unchanged, precisions).by_class(classes)) == expected
        by_precision += expected != max(near, key=lambda i: (unchanged[i].sum(), -i))
    assert by_precision > 3


def test_folds_are_disjoint_and_deterministic():
    labels = np.random.default_rng(0).integers(0, 23, 300)
    parts = list(folds(labels))
    assert (np.sum(parts, axis=0) == 1).all()
    for c in range(23):
        assert sum(part[labels == c].any() for part in parts) == 1
    assert all((a == b).all() for a, b in zip(parts, folds(labels), strict=True))
    sizes = [len(set(labels[part])) for part in parts]
    assert max(sizes) - min(sizes) <= 1


def test_weights_are_chosen_on_other_classes():
    """A fold's weights stay the same when its own scores change."""
    candidates, labels, matches = drawn(queries=200, classes=40)
    fitted = crossfit(candidates, labels, matches, matches.sum(axis=1), True)
    part = next(iter(folds(labels)))
    changed = candidates._replace(logits=np.where(part[:, None], -candidates.logits, candidates.logits))
    again = crossfit(changed, labels, matches ^ part[:, None], matches.sum(axis=1), True)
    assert again.by_fold[0] == fitted.by_fold[0]
    for chosen, rows in zip(fitted.by_fold, folds(labels), strict=True):
        expected = ranking_by(candidates, chosen)
        assert (fitted.ranking.positions[rows] == expected.positions[rows]).all()
        assert (fitted.ranking.scores[rows] == expected.scores[rows]).all()


def test_fusion_with_useless_and_useful_matchers():
    def gain(useful):
        candidates, labels, matches = drawn(seed=3, queries=600, classes=60, useful=useful)
        matches[:, 0] |= np.random.default_rng(5).random(600) < 0.4
        candidates = candidates._replace(chamfer=np.zeros_like(candidates.chamfer))
        first = crossfit(candidates, labels, matches, matches.sum(axis=1), True).ranking.positions[:, 0]
        place = (candidates.neighbours == first[:, None]).argmax(axis=1)
        return matches[np.arange(600), place].mean() - matches[:, 0].mean()

    assert gain(0.0) == 0
    assert gain(4.0) > 0.2


@pytest.mark.parametrize(("classes", "message"), [(4, "the queries have fewer classes"), (5, "no query has a match")])
def test_too_few_classes_or_matches(classes, message):
    candidates, labels, matches = drawn(classes=classes)
    matches[labels == 0] = False
    with pytest.raises(InputError, match=message):
        crossfit(candidates, labels, matches, matches.sum(axis=1), True)


def test_weights_as_text():
    assert str(Weights(1, 20, 0.5, 50)) == "logit + 20 * cosine + 0.5 * chamfer, 50 candidates"
    assert str(Weights(0, 0, 1, 9)) == "chamfer, 9 candidates"
    assert str(Weights(1, math.inf, 0, 9)) == "the global ranking"


@pytest.mark.parametrize("num_classes", range(9, 40))
@pytest.mark.parametrize("by_precision", [False, True])
def test_hits_that_are_within_their_standard_error(num_classes, by_precision):
    """Whatever the number of classes: one hit, or its average precision, is its own standard error."""
    hits, unchanged = np.zeros((3, num_classes), bool), np.zeros((3, num_classes), bool)
    precisions = np.zeros((3, num_classes), np.float32)
    gained = precisions if by_precision else hits
    gained[1:, :5], unchanged[1, :7], unchanged[0] = 1, True, True

    def chosen():
        return choose(Outcomes(hits, unchanged, precisions / 3).by_class(np.arange(num_classes)))

    gained[2, 5] = 1
    assert chosen() == 1
    gained[2, 6] = 1  # two have a standard error of sqrt(2)
    assert chosen() == 2
    gained[:] = 0
    gained[1, :3] = 1  # within two errors of sqrt(3)
    assert chosen() == 0
    gained[1, :4] = 1  # less its mean, an error is a little less than sqrt(4)
    assert chosen() == 1


def saturated(seed, useful):
    """Candidates of 60 classes of five of which the first is right, and four others in any order; 30 candidates."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(60), 5)
    mates = np.stack([np.setdiff1d(np.arange(q - q % 5, q - q % 5 + 5), q) for q in range(300)])
    others = np.stack(
        [rng.permutation(np.setdiff1d(np.arange(300), np.arange(q - q % 5, q - q % 5 + 5))) for q in range(300)]
    )
    first = rng.permuted(mates, axis=1)
    rest = rng.permuted(np.concatenate([first[:, 1:], others[:, :26]], axis=1), axis=1)
    neighbours = np.concatenate([first[:, :1], rest], axis=1)
    matches = labels[neighbours] == labels[:, None]
    cosines = -np.sort(-rng.random((300, 30)), axis=1) * 0.2
    cosines[:, 0] = 0.9
    chamfer = 0.6 * cosines + 0.1 * rng.random((300, 30))
    logits = 3 * rng.normal(size=(300, 30)) + useful * matches
    scores = (array.astype(np.float32) for array in (cosines, chamfer, logits))
    return Candidates(neighbours, *scores), Labels(labels, labels, True)


def gains(candidates, labels):
    """Of the cross-fitted ranking over the global one: R@1 and mAP@R."""
    positions = fit_weights(candidates, labels, True).ranking.positions
    before, after = (measures_of(p, *labels[:2], [1], True).values for p in (candidates.neighbours, positions))
    return [after[name] - before[name] for name in ("R@1", "mAP@R")]


def test_weights_are_chosen_by_precision_where_recall_is_saturated():
    recall, precision = gains(*saturated(0, 6))
    assert recall > -0.4 and precision > 9


@pytest.mark.parametrize("with_random_chamfer", [False, True])
def test_noise_does_no_harm(with_random_chamfer):
    """Logits that are noise, beside the cosine a Chamfer similarity that adds nothing, or a random one."""
    found = []
    for seed in range(6):
        candidates, labels = saturated(seed, 0)
        if with_random_chamfer:
            rng = np.random.default_rng(seed)
            candidates = candidates._replace(chamfer=rng.random((300, 30)).astype(np.float32))
        found.append(gains(candidates, labels))
    recall, precision = np.mean(found, axis=0)
    assert recall >= -0.1 and precision > -0.25  # a single one's standard error is 0.4


def test_without_the_global_ranking_noise_is_ranked_by():
    candidates, labels = saturated(0, 0)
    by_fold = [fit_weights(candidates, labels, True, with_global).by_fold for with_global in (True, False)]
    assert [{np.isinf(weights.cosine) for weights in weights_of_folds} for weights_of_folds in by_fold] == [
        {True},
        {False},
    ]
