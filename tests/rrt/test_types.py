"""The library's types, as a program sees them: `make test` checks this file, and it runs."""

from pathlib import Path
from typing import assert_type

import numpy as np
import torch

from rrt import Features, Match, Ranking, Reranker


def test_a_program(reranker: Reranker, paths: list[Path]) -> None:
    features = reranker.embed(paths, progress=False, batch_size=4, precision="fp32")
    assert_type(features, Features)
    matches = reranker.rank(paths[0], features, top_k=2, fusion=(20, 10), batch_size=None)
    assert_type(matches, list[Match])
    assert_type(matches[0].probability, float | None)
    rows = [[1, 2], [0, 2]]
    expected = reranker.rerank(features[:2], features, rows)
    assert_type(expected, Ranking)
    for ranking in (
        reranker.rerank(features[:2], features, [(1, 2), (0, 2)]),
        reranker.rerank(features[:2], features, np.array(rows), progress=False),
        reranker.rerank(list(features[:2]), tuple(features), torch.tensor(rows), batch_size=40),
    ):
        assert np.array_equal(ranking.scores, expected.scores)
        assert np.array_equal(ranking.positions, expected.positions)
    assert len(reranker.rerank(paths[0], paths, [1, 2]).scores) == 1
    assert_type(reranker.score(paths[:1], paths[1:2], precision="fp32"), torch.Tensor)
