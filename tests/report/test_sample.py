import numpy as np

from report.sample import OUTCOMES, draw, outcomes


def test_outcomes():
    before, after = np.array([3, 0, np.inf, 0]), np.array([0, 1, 5, 0])
    assert [OUTCOMES[i] for i in outcomes(before, after)] == ["gained", "lost", "still wrong", "still right"]


def test_each_outcome_in_turn_as_long_as_there_are_such():
    outcome = np.repeat([0, 1, 3], [2, 1, 97])
    order = draw(outcome)
    assert sorted(order) == list(range(100)) and order == draw(outcome)
    assert outcome[order[:6]].tolist() == [0, 1, 3, 0, 3, 3]
    assert order[5:] != sorted(order[5:])
