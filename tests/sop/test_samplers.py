import itertools
import time
from collections import Counter

import numpy as np
import pytest

from sop.samplers import RandomIdentitySampler, RandomSampler, TripletSampler
from utils.errors import InputError

LABELS = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2, 3])


def epoch(sampler, number=0):
    sampler.set_epoch(number)
    batches = [[draw.image for draw in batch] for batch in sampler]
    assert len(batches) == len(sampler)
    return batches


def flat(batches):
    return [image for batch in batches for image in batch]


def all_neighbours(labels):
    """Every image's neighbours: all the others, in order."""
    n = len(labels)
    return np.array([[j for j in range(n) if j != i] for i in range(n)])


def chi_square_is_plausible(counts, expected):
    """Within six standard deviations of the chi-square distribution's mean."""
    statistic, freedom = float((((counts - expected) ** 2) / expected).sum()), np.size(counts) - 1
    return abs(statistic - freedom) < 6 * np.sqrt(2 * freedom)


def make(kind, seed=0):
    if kind == "random":
        return RandomSampler(10, 4, seed)
    if kind == "random_id":
        return RandomIdentitySampler(LABELS, 4, 2, 5, seed)
    if kind == "several negatives":
        return TripletSampler(LABELS, all_neighbours(LABELS), 10, seed, 3)
    return TripletSampler(LABELS, all_neighbours(LABELS), 6, seed)


@pytest.mark.parametrize("kind", ["random", "random_id", "triplet", "several negatives"])
def test_epochs_depend_on_seed_and_number(kind):
    draws = list(make(kind))
    assert draws == list(make(kind))
    keys = [draw.key for batch in draws for draw in batch]
    assert keys == [(0, 0, position) for position in range(len(keys))]
    assert epoch(make(kind)) != epoch(make(kind), 1)
    assert epoch(make(kind)) != epoch(make(kind, seed=1))


def test_random_visits_each_image_once():
    batches = epoch(RandomSampler(11, 4, 0))
    assert [len(batch) for batch in batches] == [4, 4]
    assert len(set(flat(batches))) == 8


def test_random_needs_a_full_batch():
    with pytest.raises(InputError, match=r"batch_size=12, but there are only 11 training images"):
        RandomSampler(11, 12, 0)


def test_identity_batches():
    for batch in epoch(RandomIdentitySampler(LABELS, 6, 2, 50, 0)):
        assert len(set(batch)) == 6
        classes = LABELS[batch].reshape(2, 3)
        assert (classes == classes[:, :1]).all()
        assert set(classes[:, 0]) == {0, 2}  # only these have three images


def test_identity_batches_are_planned_quickly():
    labels = np.repeat(np.arange(11_318), 2 + np.arange(11_318) % 8)
    start = time.process_time()
    batches = epoch(RandomIdentitySampler(labels, 800, 400, 74, 0))
    assert time.process_time() - start < 0.5  # measured: 0.04 s
    assert [len(batch) for batch in batches] == [800] * 74


def test_identity_draws_classes_and_images_uniformly():
    batches = np.array(epoch(RandomIdentitySampler(LABELS, 4, 2, 6000, 0)))
    pairs = Counter(tuple(sorted(row)) for row in LABELS[batches[:, ::2]].tolist())
    assert chi_square_is_plausible(np.array([pairs[p] for p in ((0, 1), (0, 2), (1, 2))]), 2000)
    images = batches.reshape(-1, 2)
    of_class_2 = Counter(tuple(row) for row in images[LABELS[images[:, 0]] == 2].tolist())
    assert len(of_class_2) == 12  # ordered pairs of four images
    assert chi_square_is_plausible(np.array(list(of_class_2.values())), sum(of_class_2.values()) / 12)


def test_invalid_identity_settings():
    with pytest.raises(InputError, match=r"batch_size=7 is no multiple of dataset\.num_identities=2"):
        RandomIdentitySampler(LABELS, 7, 2, 5, 0)
    with pytest.raises(InputError, match=r"num_identities=4, but only 3 .* have 2 or more .* dataset\.sample_per_id"):
        RandomIdentitySampler(LABELS, 8, 4, 5, 0)


def test_triplets():
    sampler = TripletSampler(LABELS, all_neighbours(LABELS), 6, 0)
    batches = epoch(sampler)
    assert [len(batch) for batch in batches] == [6, 6, 6, 6, 3]
    triplets = np.array(flat(batches)).reshape(-1, 3)
    anchors, positives, negatives = triplets.T
    assert sorted(anchors) == list(range(9))  # image 9 is alone in its class
    assert (anchors != positives).all()
    assert (LABELS[anchors] == LABELS[positives]).all()
    assert (LABELS[anchors] != LABELS[negatives]).all()


def test_triplets_are_drawn_uniformly():
    neighbours = np.array([[1, 3, 5, 2], [0, 4, 6, 9], [0, 1, 3, 4]] + [[0, 1, 2, 9]] * 7)
    sampler, rounds = TripletSampler(LABELS, neighbours, 30, 0), 4000
    triplets = np.array([flat(epoch(sampler, number)) for number in range(rounds)]).reshape(-1, 3)
    for anchor, others, hard in ((0, [1, 2], [3, 5]), (1, [0, 2], [4, 6, 9]), (7, [5, 6, 8], [0, 1, 2, 9])):
        rows = triplets[triplets[:, 0] == anchor]
        for column, allowed in ((1, others), (2, hard)):
            counts = Counter(rows[:, column].tolist())
            assert set(counts) == set(allowed)
            assert chi_square_is_plausible(np.array(list(counts.values())), rounds / len(allowed))


def test_random_negatives_without_hard_ones(capsys):
    neighbours = np.array([[1, 2]] * 3 + [[0, 9]] * 7)
    sampler = TripletSampler(LABELS, neighbours, 30, 0)
    assert "1 images alone in their class are no anchors; 3 anchors with no neighbour" in capsys.readouterr().out
    triplets = np.array([flat(epoch(sampler, number)) for number in range(700)]).reshape(-1, 3)
    negatives = Counter(triplets[triplets[:, 0] == 1][:, 2].tolist())
    assert set(negatives) == set(range(3, 10))
    assert chi_square_is_plausible(np.array(list(negatives.values())), 100)
    assert capsys.readouterr().out == ""


def test_one_negative_is_drawn_as_by_one_number():
    """The draws of former runs, which a continued one draws, too."""
    sampler = TripletSampler(LABELS, all_neighbours(LABELS), 30, 0)
    rng = np.random.default_rng((0, 2))
    anchors = rng.permutation(9)
    others = np.array([[j for j in range(10) if LABELS[j] == LABELS[i] and j != i] for i in anchors], dtype=object)
    positives = [row[j] for row, j in zip(others, rng.integers([len(row) for row in others]), strict=True)]
    different = [[j for j in range(10) if LABELS[j] != LABELS[i]] for i in anchors]
    sizes = [len(row) for row in different]
    rng.integers(sizes)  # a random negative, where there is no hard one
    negatives = [row[j] for row, j in zip(different, rng.integers(sizes), strict=True)]
    assert epoch(sampler, 2) == [np.stack((anchors, positives, negatives), axis=1).ravel().tolist()]


def test_several_negatives():
    neighbours = np.array([[1, 3, 5, 2], [0, 4, 6, 9], [0, 1, 3, 4]] + [[0, 1, 2, 9]] * 7)
    sampler, rounds = TripletSampler(LABELS, neighbours, 50, 0, 3), 3000
    batches = [epoch(sampler, number) for number in range(rounds)]
    assert [[len(batch) for batch in batches] for batches in batches] == [[45]] * rounds
    groups = np.array([flat(batch) for batch in batches]).reshape(-1, 5)
    assert (LABELS[groups[:, 0]] == LABELS[groups[:, 1]]).all() and (groups[:, 0] != groups[:, 1]).all()
    assert (LABELS[groups[:, 2:]] != LABELS[groups[:, :1]]).all()
    for anchor, hard in ((1, [4, 6, 9]), (7, [0, 1, 2, 9])):  # as many as are wanted, and more: none twice
        of_anchor = [tuple(row) for row in groups[groups[:, 0] == anchor][:, 2:].tolist()]
        expected = list(itertools.permutations(hard, 3))
        counts = Counter(of_anchor)
        assert set(counts) == set(expected)
        assert chi_square_is_plausible(np.array([counts[key] for key in expected]), rounds / len(expected))
    of_anchor = groups[groups[:, 0] == 0][:, 2:]  # two hard ones: both, and one of them again
    assert set(map(tuple, of_anchor.tolist())) == {(a, b, c) for a, b in ((3, 5), (5, 3)) for c in (3, 5)}


def test_several_negatives_without_hard_ones():
    neighbours = np.array([[1, 2, 0]] * 3 + [[0, 1, 9]] * 7)
    groups = np.array([flat(epoch(TripletSampler(LABELS, neighbours, 40, 0, 2), i)) for i in range(300)]).reshape(-1, 4)
    random_ones = groups[groups[:, 0] == 1][:, 2:]
    assert set(random_ones[:, 0]) == set(random_ones[:, 1]) == set(range(3, 10))


def test_invalid_numbers_of_negatives():
    with pytest.raises(InputError, match=r"batch_size=12 is no multiple of 5, .* needs one for num_negatives=3"):
        TripletSampler(LABELS, all_neighbours(LABELS), 12, 0, 3)
    with pytest.raises(InputError, match=r"num_negatives=10, but negatives come from the first 9 neighbours in data"):
        TripletSampler(LABELS, all_neighbours(LABELS), 12, 0, 10)


def test_negatives_are_among_the_first_100_neighbours():
    labels = np.repeat([0, 1], [110, 3])
    neighbours = np.array([[j for j in range(113) if j != i] for i in range(113)])
    sampler = TripletSampler(labels, neighbours, 3, 0)
    assert not sampler.hard[0].any()
    assert sampler.hard.shape == (113, 100)


def test_triplets_need_batches_of_three_and_two_classes():
    with pytest.raises(InputError, match=r"batch_size=10 is no multiple of 3"):
        TripletSampler(LABELS, all_neighbours(LABELS), 10, 0)
    with pytest.raises(InputError, match="needs two training classes"):
        TripletSampler(np.zeros(4, int), np.zeros((4, 1), int), 3, 0)
