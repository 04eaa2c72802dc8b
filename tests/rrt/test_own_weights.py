"""Networks with weights of their own ranking: fitted on validation classes and kept with them."""

import json
import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models.matcher import Matcher
from rrt import Features, InputError, Reranker
from rrt.__main__ import main
from rrt.index import Index, update
from rrt.index_table import existing_table
from rrt.pretrained import CONFIG
from rrt.ranker import Match
from tests.rrt.test_reranker import plain_logits
from tests.utils.retrieval.test_fitted import RECORD
from utils.io.checkpoint import save_tensors
from utils.io.kept_fusion import add_fusion
from utils.retrieval.calibration import Calibration
from utils.retrieval.pair_scoring import pair_scores

CALIBRATION = Calibration(2.0, -11.0, 0.2, 5.5, 0.01, 900, 30)
OWN = RECORD._replace(logit=1.0, cosine=3.0, chamfer=2.0, num_candidates=3, calibration=CALIBRATION)
WITHOUT_LOGIT = OWN._replace(logit=0.0)


def with_weights(content, path, fitted, **origin):
    """The checkpoint `path` with weights."""
    save_tensors(path, content | {"origin": content["origin"] | origin})
    add_fusion(path, fitted.to_dict())
    return path


@pytest.fixture
def checkpoint(content, tmp_path):
    """A checkpoint with weights of all three scores."""
    return with_weights(content, tmp_path / "own.pt", OWN)


@pytest.fixture
def own(checkpoint) -> Reranker:
    return Reranker.from_pretrained(checkpoint, device="cpu")


@pytest.fixture
def untrained(content, tmp_path) -> Reranker:
    """A network of the objective 'chamfer': its matcher was never trained."""
    path = with_weights(content, tmp_path / "chamfer.pt", WITHOUT_LOGIT, matcher_trained=False)
    return Reranker.from_pretrained(path, device="cpu")


def plain_scores(reranker, query, candidates) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, cosines and Chamfer similarities (m,) of one query's features with candidates'."""
    tokens = F.normalize(candidates.maps.flatten(2), dim=1)
    cosines = F.normalize(query.maps.flatten(2), dim=1).transpose(1, 2) @ tokens
    chamfer = (cosines.amax(2).mean(1) + cosines.amax(1).mean(1)) / 2
    return plain_logits(reranker, query, candidates), candidates.descriptors @ query.descriptors[0], chamfer


def of_photos(matches: list[Match]) -> list[float]:
    """The scores in the order of the candidates."""
    return [match.score for match in sorted(matches, key=lambda match: match.index)]


def test_a_network_ranks_by_its_own_weights(own, reranker, paths):
    query, candidates = own.embed(paths[0]), own.embed(paths[1:])
    logits, cosines, chamfer = plain_scores(own, query, candidates)
    expected = logits + 3 * cosines + 2 * chamfer
    matches = own.rank(paths[0], paths[1:])
    np.testing.assert_allclose(of_photos(matches), expected, rtol=0, atol=1e-5)
    assert [match.score for match in matches] == sorted(of_photos(matches), reverse=True)
    for match in matches:
        assert match.logit == pytest.approx(logits[match.index].item(), abs=1e-5)
        assert match.probability == pytest.approx(1 / (1 + math.exp(11 - 2 * match.score)), abs=1e-12)
    assert 0 < min(match.probability for match in matches) < 1
    np.testing.assert_allclose(own.score([paths[0]] * 6, paths[1:]), expected, rtol=0, atol=1e-5)
    assert repr(own) == (
        "Reranker(resnet18, 64 pixels, cpu; ranks by logit + 3 * cosine + 2 * chamfer, 3 candidates, fitted on val.txt)"
    )
    assert own.digest() == reranker.digest()


def test_other_weights_than_its_own(own, reranker, paths):
    query, candidates = own.embed(paths[0]), own.embed(paths[1:])
    logits, cosines, chamfer = plain_scores(own, query, candidates)
    for fusion in ("logit", None):
        matches = own.rank(query, candidates, fusion=fusion)
        assert matches == reranker.rank(query, candidates)
        assert all(match.score == match.logit and match.probability is None for match in matches)
    for fusion in ((1, 5), np.array([1, 5])):
        matches = own.rank(query, candidates, fusion=fusion)
        np.testing.assert_allclose(of_photos(matches), logits + cosines + 5 * chamfer, rtol=0, atol=1e-5)
        assert matches == reranker.rank(query, candidates, fusion=fusion)
        assert all(match.probability is None for match in matches)
    assert own.rank(query, candidates, fusion=(3, 2)) == own.rank(query, candidates, fusion="fitted")
    with pytest.raises(
        InputError, match=r"fusion='own': give 'fitted', 'cascade', 'logit', or \(w, v\), two numbers from 0 to"
    ):
        own.rank(query, candidates, fusion="own")


def test_a_network_without_weights_ranks_by_the_logit(reranker, paths):
    features = reranker.embed(paths)
    positions = torch.arange(7).expand(7, 7)
    (logits,) = pair_scores(
        reranker.network, features.maps, features.maps, positions, [reranker.network.matcher], with_progress=False
    )
    for fusion in ({}, {"fusion": "fitted"}, {"fusion": "logit"}, {"fusion": None}, {"fusion": (0, 0)}):
        ranking = reranker.rerank(features, features, positions, **fusion)
        expected, order = logits.sort(dim=1, descending=True, stable=True)
        np.testing.assert_array_equal(ranking.scores, expected)
        np.testing.assert_array_equal(ranking.positions, order)
    assert all(match.probability is None for match in reranker.rank(paths[0], paths))
    assert repr(reranker) == "Reranker(resnet18, 64 pixels, cpu; ranks by logit)"


def test_scores_that_are_not_calibrated(content, paths, tmp_path):
    path = with_weights(content, tmp_path / "plain.pt", OWN._replace(calibration=None))
    loaded = Reranker.from_pretrained(path, device="cpu")
    assert [match.probability for match in loaded.rank(paths[0], paths[:3])] == [None] * 3


def test_a_network_whose_matcher_was_never_trained(untrained, paths, tmp_path, monkeypatch):
    untrained.save_pretrained(tmp_path / "saved")
    for loaded in (untrained, Reranker.from_pretrained(tmp_path / "saved", device="cpu")):
        assert not loaded.matcher_trained
        query, candidates = loaded.embed(paths[0]), loaded.embed(paths[1:])
        _, cosines, chamfer = plain_scores(loaded, query, candidates)
        with monkeypatch.context() as patch:
            patch.setattr(Matcher, "score", None)
            matches = loaded.rank(query, candidates)
        np.testing.assert_allclose(of_photos(matches), 3 * cosines + 2 * chamfer, rtol=0, atol=1e-5)
        assert all(match.logit is None and 0 < match.probability < 1 for match in matches)
        for fusion in ("logit", None, (3, 2)):
            with pytest.raises(InputError, match=r"fusion=.*: the matcher was never trained, leave fusion out"):
                loaded.rank(query, candidates, fusion=fusion)
    assert "ranks by 3 * cosine + 2 * chamfer, 3 candidates" in repr(untrained)


@pytest.mark.parametrize("name", ["own", "untrained"])
def test_padding(name, request, paths):
    """Rows filled up with -1 give what shorter rows give."""
    loaded = request.getfixturevalue(name)
    features = loaded.embed(paths[:4])
    neighbours = np.array([[1, -1, 3], [-1, -1, -1], [0, 1, 3], [2, -1, -1]])
    ranking = loaded.rerank(features, features, neighbours)
    for row, query in enumerate(neighbours):
        kept = query[query >= 0]
        alone = loaded.rerank(features[row], features, kept) if len(kept) else [np.empty((1, 0))] * 2
        for found, expected, padding in zip(ranking, alone, (-np.inf, -1), strict=True):
            np.testing.assert_array_equal(found[row, len(kept) :], padding)
            np.testing.assert_allclose(found[row, : len(kept)], expected[0], rtol=0, atol=1e-5)


def test_folder_there_and_back(own, paths, tmp_path):
    own.save_pretrained(tmp_path / "saved")
    loaded = Reranker.from_pretrained(tmp_path / "saved", device="cpu")
    assert loaded.fusion == own.fusion == OWN and loaded.matcher_trained
    assert loaded.rank(paths[0], paths) == own.rank(paths[0], paths)
    assert repr(loaded) == repr(own)


def test_weights_that_need_a_matcher_that_was_never_trained(content, tmp_path):
    path = with_weights(content, tmp_path / "global.pt", OWN, matcher_trained=False)
    with pytest.raises(InputError, match=r"has a matcher that was never trained: experiment_rerank\.py trains it"):
        Reranker.from_pretrained(path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (3, "weights must be a record of logit, cosine"),
        ([], "weights must be a record of logit, cosine"),
        ({"logit": 1.0}, "weights must be a record of logit, cosine"),
        (OWN.to_dict() | {"cosine": "much"}, "weights.cosine='much': give a number from 0 to 1,000,000"),
        (OWN.to_dict() | {"calibration": {}}, "weights.calibration must be a record of slope"),
    ],
)
def test_a_damaged_record(own, content, tmp_path, damage, message):
    save_tensors(tmp_path / "damaged.pt", content | {"fusion": damage})
    own.save_pretrained(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / CONFIG).read_text())
    (tmp_path / "saved" / CONFIG).write_text(json.dumps(config | {"fusion": damage}))
    for source, file in ((tmp_path / "damaged.pt",) * 2, (tmp_path / "saved", tmp_path / "saved" / CONFIG)):
        with pytest.raises(InputError, match=rf"^{file}: {message}.*: fit them again, or take another file"):
            Reranker.from_pretrained(source)


@pytest.fixture
def index(own, paths, tmp_path):
    """The folder of an index of seven photos whose network has weights for three candidates."""
    update(tmp_path / "index", paths, own)
    return tmp_path / "index"


def searched(capsys, *arguments) -> dict:
    assert main(["search", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def as_kept(reranker, photos) -> Features:
    """Features as an index has them."""
    features = reranker.embed(photos)
    return Features(features.descriptors, features.maps.half())


def found(answer: dict) -> list[tuple]:
    return [(photo["photo"], photo["score"]) for photo in answer["answers"][0]["found"]]


def test_a_search_uses_them_and_their_number_of_candidates(own, index, paths, capsys):
    assert Index(index, device="cpu").num_candidates() == 3
    answer = searched(capsys, index, paths[0])
    assert answer["ranking"] == "reranked by logit + 3 * cosine + 2 * chamfer, 3 candidates, fitted on val.txt"
    nearest = [
        photo["photo"] for photo in searched(capsys, index, paths[0], "--rerank", "0")["answers"][0]["found"][:3]
    ]
    expected = own.rank(paths[0], as_kept(own, nearest))
    assert [photo for photo, _ in found(answer)[:3]] == [nearest[match.index] for match in expected]
    for photo, match in zip(answer["answers"][0]["found"], expected, strict=False):
        scores = [photo[name] for name in ("score", "logit", "cosine", "probability")]
        assert scores == pytest.approx([match.score, match.logit, match.cosine, match.probability], abs=1e-5)
    others = answer["answers"][0]["found"][3:]
    assert len(others) == 4 and {(photo["score"], photo["probability"]) for photo in others} == {(None, None)}


@pytest.mark.parametrize(
    ("options", "ranking", "fusion", "num_candidates"),
    [
        (["--rerank", "5"], "reranked by logit + 3 * cosine + 2 * chamfer, 5 candidates, fitted on val.txt", (3, 2), 5),
        (["--fusion", "20", "0"], "reranked by logit + 20 * cosine, 3 candidates", (20, 0), 3),
        (["--fusion", "0", "0", "--rerank", "7"], "reranked by logit, 7 candidates", "logit", 7),
        (["--rerank", "0"], "ranked by cosine", None, 0),
    ],
)
def test_a_search_that_is_told_otherwise(own, index, paths, capsys, options, ranking, fusion, num_candidates):
    answer = searched(capsys, index, paths[0], *options)
    assert answer["ranking"] == ranking
    assert [score is not None for _, score in found(answer)] == [i < (num_candidates or 7) for i in range(7)]
    if num_candidates:
        photos = [photo for photo, _ in found(answer)[:num_candidates]]
        scores = own.score([paths[0]] * num_candidates, as_kept(own, photos), fusion)
        np.testing.assert_allclose([score for _, score in found(answer)[:num_candidates]], scores, atol=1e-5)
    calibrated = {photo["probability"] is not None for photo in answer["answers"][0]["found"][: num_candidates or 7]}
    assert calibrated == {fusion == (3, 2)}


def test_the_text_names_the_ranking_once(index, paths, capsys):
    assert main(["search", str(index), str(paths[0]), str(paths[1])]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "reranked by logit + 3 * cosine + 2 * chamfer, 3 candidates, fitted on val.txt"
    assert [line for line in lines if "ranked by" in line] == lines[:1]
    assert lines[1] == str(paths[0]) and lines[9] == str(paths[1])
    scores = r"score \S+ \(same product: [01]\.\d\d, logit \S+, cosine \S+\)"
    assert all(re.match(rf"   {i}\. {scores}  /", line) for i, line in enumerate(lines[2:5], start=1))
    assert all(re.match(rf"   {i}\. cosine \S+, not reranked  /", line) for i, line in enumerate(lines[5:9], start=4))


def test_a_search_without_a_trained_matcher(untrained, paths, tmp_path, capsys):
    update(tmp_path / "chamfer", paths, untrained)
    answer = searched(capsys, tmp_path / "chamfer", paths[0])
    assert answer["ranking"] == "reranked by 3 * cosine + 2 * chamfer, 3 candidates, fitted on val.txt"
    assert {photo["logit"] for photo in answer["answers"][0]["found"]} == {None}
    assert main(["search", str(tmp_path / "chamfer"), str(paths[0]), "--fusion", "0", "0"]) == 1
    assert "the matcher was never trained, leave fusion out" in capsys.readouterr().err


def test_compare_says_whether_it_is_one_product(own, checkpoint, paths, capsys, content, tmp_path):
    (match,) = own.rank(paths[0], [paths[5]])
    for threshold, verdict in ((match.score - 0.1, "match"), (match.score + 0.1, "no match")):
        calibration = CALIBRATION._replace(threshold=threshold, false_match_rate=0.005)
        path = with_weights(content, tmp_path / "c.pt", OWN._replace(calibration=calibration))
        assert main(["compare", str(paths[0]), str(paths[5]), "--model", str(path)]) == 0
        assert capsys.readouterr().out.splitlines() == [
            f"same product: {match.probability:.2f}, logit {match.logit:.3f}, cosine {match.cosine:.3f}",
            f"{verdict}, at a false match rate of 0.5 % among candidates",
        ]
    path = with_weights(content, tmp_path / "d.pt", WITHOUT_LOGIT._replace(calibration=None), matcher_trained=False)
    assert main(["compare", str(paths[0]), str(paths[5]), "--model", str(path)]) == 0
    assert re.fullmatch(rf"score \d\.\d+, cosine {match.cosine:.3f}\n", capsys.readouterr().out)


def test_an_index_takes_newer_weights_of_its_network(index, content, saved, reranker, paths, tmp_path, capsys):
    newer = OWN._replace(cosine=7.0, num_candidates=5)
    path = with_weights(content, tmp_path / "newer.pt", newer)
    before = existing_table(index).version
    assert main(["index", *map(str, paths), "--to", str(index), "--model", str(path)]) == 0
    assert "has 7 photos: 0 added, 0 embedded again, 0 removed" in capsys.readouterr().out
    assert existing_table(index).version == before and Index(index, device="cpu").reranker.fusion == newer
    assert searched(capsys, index, paths[0])["ranking"].startswith("reranked by logit + 7 * cosine + 2 * chamfer, 5")
    assert main(["index", str(paths[0]), "--to", str(index)]) == 0  # by its own network
    assert Index(index, device="cpu").reranker.fusion == newer
    update(tmp_path / "older", paths, reranker)
    assert Index(tmp_path / "older", device="cpu").num_candidates() == 100
    update(tmp_path / "older", paths, Reranker.from_pretrained(path, device="cpu"))
    assert Index(tmp_path / "older", device="cpu").reranker.fusion == newer
