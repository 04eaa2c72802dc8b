import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from tests.reference import published_model
from tests.utils.retrieval.test_fitted import CALIBRATION, RECORD
from tests.utils.retrieval.test_fusion import drawn
from utils.errors import InputError
from utils.evaluation import evaluate_rerank
from utils.retrieval.ranking import Candidates, Ranking
from utils.retrieval.rankings import (
    Rankings,
    cosine_rank_correlation,
    rank_candidates,
    report_matches,
    report_rankings,
)
from utils.retrieval.results import Labels, write_per_query


def test_per_query_table(tmp_path):
    ranks = {"global": np.array([0, 14, np.inf]), "logit + cosine + chamfer": np.array([2, 0, np.inf])}
    write_per_query(tmp_path / "new" / "per_query.csv", ["a, b.JPG", "c.JPG", "d.JPG"], [7, 7, 9], ranks)
    assert (tmp_path / "new" / "per_query.csv").read_text().splitlines() == [
        "query,path,class,rank_global,rank_logit_cosine_chamfer",
        '0,"a, b.JPG",7,1,3',
        "1,c.JPG,7,15,1",
        "2,d.JPG,9,,",
    ]
    write_per_query(tmp_path / "new" / "per_query.csv", ["a"], [3], {"global": np.array([4.0])})
    assert (tmp_path / "new" / "per_query.csv").read_text().splitlines()[1] == "0,a,3,5"


def test_queries_without_measures_are_printed(capsys):
    labels = np.array([0, 0, 0, 0, 1, 1, 2])
    positions = np.array([[(i + j) % 7 for j in (1, 2)] for i in range(7)])
    ranking, info = Ranking(np.zeros((7, 2), np.float32), positions), {}
    rankings = Rankings({"global": ranking}, {"global": "global"}, "global")
    report_rankings(rankings, rankings.measures(Labels(labels, labels, True), [1]), labels, [1], info)
    printed = capsys.readouterr().out
    assert "1 queries have no image of their class in the gallery, themselves left out: mAP@R" in printed
    assert (
        "4 queries have more than 2 images of their class in the gallery: mAP@R and R-precision count over" in printed
    )
    assert printed.split()[:7] == ["ranking", "R@1", "mAP@R", "R-precision", "MRR", "global", "57.14"]
    assert info["measures"]["global"]["R@1"] == 57.14


@pytest.mark.parametrize("with_logits", [True, False])
def test_constant_scores(with_logits, capsys):
    """Their order would be the global ranking's, under another name."""
    candidates, classes, _ = drawn(with_logits=with_logits)
    labels = Labels(classes, classes, True)
    scorer, scores = ("the matcher", candidates.logits) if with_logits else ("Chamfer similarity", candidates.chamfer)
    assert scores is not None
    rank_candidates(candidates, labels, None)
    assert "one score" not in capsys.readouterr().out
    scores[:7] = scores[:7, :1]
    rank_candidates(candidates, labels, None)
    assert f"{scorer} gives all candidates of 7 of 60 queries one score: they keep" in capsys.readouterr().out
    scores[:] = scores[:, :1]
    with pytest.raises(InputError, match=f"{scorer} gives all candidates of each query one score"):
        rank_candidates(candidates, labels, "crossfit")


def test_warns_of_neighbours_of_other_photos(capsys):
    """Against scipy's formula, written out: the correlation of the ranks."""
    candidates, classes, _ = drawn()
    rng, places = np.random.default_rng(0), np.arange(9)
    for noise in (0.0, 0.05, 1.0):
        cosines = candidates.cosines + noise * rng.normal(size=candidates.cosines.shape).astype(np.float32)
        rows = [np.corrcoef([(row > x).sum() for x in row], places)[0, 1] for row in cosines]
        assert cosine_rank_correlation(cosines) == pytest.approx(np.mean(rows), abs=1e-6)
        rank_candidates(candidates._replace(cosines=cosines), Labels(classes, classes, True), None)
        assert ("cosines hardly fall from first to last" in capsys.readouterr().out) == (np.mean(rows) < 0.5)
    assert cosine_rank_correlation(candidates.cosines) == cosine_rank_correlation(candidates.cosines[:, :1]) == 1


def test_validation_refuses_a_constant_matcher():
    model = published_model(4, arch="resnet18")
    images, labels = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8), torch.arange(8) // 2
    loader = DataLoader(TensorDataset(images, labels, torch.arange(8)), batch_size=8)
    neighbours = (torch.arange(8)[:, None] + torch.arange(1, 4)) % 8
    evaluate_rerank(model, neighbours, loader, None, [1])
    for parameter in model.matcher.parameters():
        torch.nn.init.zeros_(parameter)
    evaluate_rerank(model, neighbours[:, :1], loader, None, [1])  # a single candidate has an order
    with pytest.raises(InputError, match=r"the matcher gives all candidates of each query one score.* lower lr"):
        evaluate_rerank(model, neighbours, loader, None, [1])


def test_matches_are_counted_at_the_threshold(capsys):
    """Of two queries of each of two classes, with three candidates of which the first two are of their weights' range.

    Scores are cosines. Above 0.5 lie one of four impostor pairs, and three of four genuine ones: of class 0 both.
    """
    neighbours = np.array([[1, 2, 3], [2, 0, 3], [3, 0, 1], [0, 2, 1]])
    cosines = np.array([[0.9, 0.2, 0.9], [0.6, 0.8, 0.9], [0.7, 0.1, 0.9], [0.5, 0.4, 0.9]], np.float32)
    candidates = Candidates(neighbours, cosines, np.zeros_like(cosines), None)
    classes, info = np.array([0, 0, 1, 1]), {}
    labels = Labels(classes, classes, True)
    calibration = CALIBRATION._replace(slope=10.0, offset=-5.0, threshold=0.5, false_match_rate=0.02)
    own = RECORD._replace(logit=0.0, cosine=1.0, num_candidates=2, calibration=calibration)
    report_matches(candidates, labels, own, info)
    rates = {name: info["matches"][name] for name in ("false_match_rate", "false_non_match_rate")}
    assert rates == {"false_match_rate": 0.25, "false_non_match_rate": 0.25}
    assert sum(part["num_pairs"] for part in info["matches"]["reliability"]) == 8
    assert (
        "at the threshold for a false match rate of 2 % among candidates: 25.00 % false matches here, and 25.00 % of "
        "true pairs are missed (95 % interval "
    ) in capsys.readouterr().out
    report_matches(candidates, Labels(np.arange(4), classes + 9, False), own, info := {})
    assert "the threshold for a match is not judged: no candidate is of its query's class" in capsys.readouterr().out
    for other in (own._replace(calibration=None), own._replace(logit=1.0), own._replace(num_candidates=4)):
        report_matches(candidates, labels, other, info)
    assert info == {} and capsys.readouterr().out == ""
