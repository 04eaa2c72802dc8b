"""Weights of a ranking that are fitted on validation classes, kept in the checkpoint, and used by eval_rerank.py."""

import hashlib
import re
import shutil

import numpy as np
import pytest
import torch

import eval_rerank
import experiment_rerank
from models.settings import ANSWER_SETTINGS
from rrt import Reranker
from tests.conftest import TINY
from tests.processes import in_processes
from tests.test_continue import Killed, killed_after, outcome
from tests.utils.retrieval.test_fitted import RECORD
from utils import pickle_load, pickle_save
from utils.experiment import fusion, training_run
from utils.experiment.run_folder import CommandError
from utils.io.checkpoint import save_tensors
from utils.io.kept_fusion import add_fusion
from utils.retrieval.calibration import Calibration
from utils.retrieval.fitted import FittedWeights, fit
from utils.retrieval.measures import measures_of
from utils.retrieval.ranking import ranking_by
from utils.retrieval.results import load_scores
from utils.runtime.ranks import rank

NAME = "resnet18_sop.pt"
CALIBRATION = Calibration(0.5, -3.0, 0.1, 2.08, 0.01, 15000, 60)  # some scores of the untrained network lie above it
WEIGHTS = RECORD._replace(logit=1.0, cosine=2.0, chamfer=0.5, num_candidates=4, calibration=CALIBRATION)
WITHOUT_LOGIT = WEIGHTS._replace(logit=0.0, calibration=None)


@pytest.fixture
def lists(photos):
    """Lists of the test photos under another name, and of four classes of them."""
    lines = (photos / "test.txt").read_text().splitlines()
    (photos / "val.txt").write_text("\n".join(lines))
    (photos / "four.txt").write_text("\n".join(lines[:16]))


@pytest.fixture
def settings(tiny, neighbours, tmp_path, lists):
    """What makes the settings of a training of 2 epochs of 3 iterations, validated on five classes, in a folder."""

    def of(folder, val_file="val.txt", **changes):
        data = {"batch_size": 24, "sampler": "triplet", "train_cache_nn_inds": str(neighbours / "train.pkl")}
        common = {"epochs": 2, "lr": 0.001, "scheduler_tau": [1], "cache_nn_inds": str(neighbours / "test.pkl")}
        return tiny(**common | {"dataset": data | {"val_file": val_file}} | changes, temp_dir=tmp_path / folder)

    return of


@pytest.fixture
def evaluate(tiny, observed, neighbours, tmp_path, lists):
    """What evaluates a checkpoint, by default on the test set, in the folder `eval`."""

    def run(checkpoint, test_file="test.txt", val_file=None, **changes):
        common = {"resume": str(checkpoint), "cache_nn_inds": str(neighbours / "test.pkl")}
        data = {"dataset": {"test_file": test_file, "val_file": val_file}}
        return observed(eval_rerank.ex, **tiny(**common | data | changes, temp_dir=tmp_path / "eval"))

    return run


@pytest.fixture
def weighted(checkpoint, tmp_path):
    """What makes a checkpoint with a record."""

    def make(record, **origin):
        path, model = tmp_path / "weighted.pt", {"model": {}, "matcher_trained": True, "crop_size": 64}
        save_tensors(path, {"state": torch.load(checkpoint), "origin": model | origin})
        add_fusion(path, record.to_dict() if isinstance(record, FittedWeights) else record)
        return path

    return make


def read(path):
    return torch.load(path, weights_only=True)


def digest(path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("objective", ["published", "joint", "chamfer"])
def test_a_training_keeps_weights_of_its_best_epoch(
    observed, settings, evaluate, neighbours, tmp_path, monkeypatch, objective
):
    """They are those of the scores that an evaluation of the checkpoint saves; else the checkpoint is as without."""
    name, recalls = "evaluate_rerank" if objective == "published" else "evaluate_fused", iter([9.0, 8.0] * 2)

    def falling(*_, **__):
        return {1: (recall := next(recalls)), 10: recall}, None, np.zeros((20, 10))

    monkeypatch.setattr(experiment_rerank, name, falling)
    run = observed(experiment_rerank.ex, **settings("run", objective=objective, epochs=1))
    with monkeypatch.context() as patch:
        patch.setattr(experiment_rerank, "fit_best_checkpoint", lambda *_: None)
        plain = observed(experiment_rerank.ex, **settings("plain", objective=objective, epochs=1))
    content, expected = read(tmp_path / "run" / NAME), read(tmp_path / "plain" / NAME)
    record, made_from = content.pop("fusion"), content.pop("made_from")
    assert made_from == digest(tmp_path / "plain" / NAME)
    assert content.keys() == expected.keys() and content["origin"] == expected["origin"]
    assert all(torch.equal(content["state"][key], tensor) for key, tensor in expected["state"].items())
    last, plain_last = read(tmp_path / "run" / "last.pt"), read(tmp_path / "plain" / "last.pt")
    assert all(torch.equal(last["model"][key], tensor) for key, tensor in plain_last["model"].items())
    assert last["about"]["checkpoint"] == made_from

    assert run.info["fusion"] == record and "fusion" not in plain.info
    assert run.info["md5"][str(tmp_path / "run" / NAME)] == digest(tmp_path / "run" / NAME)
    assert (run.folder / NAME).read_bytes() == (tmp_path / "run" / NAME).read_bytes()
    fitted = FittedWeights.from_dict(record)
    (line,) = [line for line in run.printed.splitlines() if "for new photos" in line]
    assert line.startswith(
        f"for new photos: {fitted.weights}; fitted on 20 photos of 5 classes (val.txt), where cross-"
    )
    assert re.search(r"global ranking by R@1 \S+ \(\S+ to \S+\), mAP@R \S+ \(\S+ to \S+\)$", line)
    with_logits = objective != "chamfer"
    evaluate(tmp_path / "plain" / NAME, scorer="matcher" if with_logits else "chamfer")
    assert fitted == fit(*load_scores(tmp_path / "eval"), with_logits, "val.txt")


@pytest.mark.parametrize(
    ("val_file", "message"),
    [
        (None, "no weights of a ranking are fitted: dataset.val_file=None, and the test set is for evaluation"),
        ("four.txt", "no weights of a ranking are fitted on four.txt: weights are chosen over 5 folds of classes, but"),
    ],
)
def test_a_training_without_weights_says_why(observed, settings, tmp_path, val_file, message):
    pickle_save(tmp_path / "nn.pkl", np.array([[j for j in range(16) if j != i] for i in range(16)]))
    cache = {"cache_nn_inds": str(tmp_path / "nn.pkl")} if val_file else {}
    run = observed(experiment_rerank.ex, **settings("run", val_file, epochs=0, **cache))
    assert run.printed.count(message) == 1 and "for new photos" not in run.printed
    assert not {"fusion", "made_from"} & read(tmp_path / "run" / NAME).keys()
    assert "fusion" not in run.info


def test_of_two_processes_the_first_reads_and_writes(observed, settings, evaluate, tmp_path):
    """The other one may be on another machine, or faster than the first one's disk."""

    def work():
        written = []

        def add(path, record):
            written.append(path)
            add_fusion(path, record)

        training_run.add_fusion = add
        if rank():
            fusion.load_weights = None  # type: ignore[assignment]
            experiment_rerank.ex.run(config_updates=settings("run", epochs=0))
            return written, None
        return written, observed(experiment_rerank.ex, **settings("run", epochs=0)).info["fusion"]

    (first, record), (second, _) = in_processes(2, work, tmp_path / "results")
    assert (first, second) == ([tmp_path / "run" / NAME], [])
    assert read(tmp_path / "run" / NAME)["fusion"] == record
    evaluate(tmp_path / "run" / NAME)
    expected = fit(*load_scores(tmp_path / "eval"), True, "val.txt")
    found = FittedWeights.from_dict(record)
    assert found[:9] == expected[:9]
    assert found.calibration == pytest.approx(expected.calibration, rel=1e-2)


def killed(*_):
    raise Killed


@pytest.mark.parametrize("is_fitting", [False, True])
def test_a_killed_run_comes_to_the_same_weights(observed, settings, tmp_path, monkeypatch, is_fitting):
    whole = outcome(observed(experiment_rerank.ex, **settings("whole")), tmp_path / "whole" / NAME)
    with monkeypatch.context() as patch:
        if is_fitting:
            patch.setattr(fusion, "fit", killed)
        else:
            killed_after(4, patch)
        with pytest.raises(Killed):
            observed(experiment_rerank.ex, **settings("killed", save_minutes=0))
    assert "fusion" not in read(tmp_path / "killed" / NAME)
    continued = observed(experiment_rerank.ex, **settings("killed", continue_run=True))
    assert outcome(continued, tmp_path / "killed" / NAME) == whole


@pytest.mark.parametrize("replaced", [None, WEIGHTS], ids=["finished", "other weights"])
def test_a_checkpoint_with_weights_is_still_the_best_epoch(observed, settings, tmp_path, monkeypatch, replaced):
    """Also one to which they were added alone: by `keep_fusion`, or before the run was killed."""
    first = outcome(observed(experiment_rerank.ex, **settings("run", epochs=1)), tmp_path / "run" / NAME)
    if replaced:
        add_fusion(tmp_path / "run" / NAME, replaced.to_dict())
    again = observed(experiment_rerank.ex, **settings("run", epochs=1, continue_run=True))
    assert "best starts anew" not in again.printed
    assert outcome(again, tmp_path / "run" / NAME)[1:] == first[1:]
    whole = outcome(observed(experiment_rerank.ex, **settings("whole")), tmp_path / "whole" / NAME)
    grown = observed(experiment_rerank.ex, **settings("run", continue_run=True))
    assert outcome(grown, tmp_path / "run" / NAME) == whole


def test_a_new_training_does_not_inherit_weights(observed, settings, weighted, tmp_path):
    start = {"resume": str(weighted(WEIGHTS)), "epochs": 0}
    observed(experiment_rerank.ex, **settings("without", None, **start))
    assert "fusion" not in read(tmp_path / "without" / NAME)
    run = observed(experiment_rerank.ex, **settings("own", **start))
    record = read(tmp_path / "own" / NAME)["fusion"]
    assert record == run.info["fusion"] != WEIGHTS.to_dict()
    assert read(tmp_path / "own" / NAME)["made_from"] == digest(tmp_path / "without" / NAME)


def test_an_evaluation_ranks_by_them(evaluate, weighted, neighbours, tmp_path):
    path = weighted(WEIGHTS)
    run = evaluate(path, fusion="own")
    scores, cached = np.load(tmp_path / "eval" / "scores.npz"), pickle_load(neighbours / "test.pkl")
    fused = (scores["logits"] + 2 * scores["cosines"] + 0.5 * scores["chamfer"])[:, :4]
    order = np.argsort(-fused, axis=1, kind="stable")
    positions, values = (pickle_load(tmp_path / "eval" / name) for name in ("nn_inds.pkl", "nn_dists.pkl"))
    assert np.array_equal(positions[:, :4], np.take_along_axis(cached[:, :4], order, axis=1))
    assert np.array_equal(positions[:, 4:], cached[:, 4:])
    np.testing.assert_allclose(values[:, :4], np.take_along_axis(fused, order, axis=1), rtol=1e-5, atol=1e-6)

    assert {"global", "logit", "own"} < run.info["measures"].keys()
    assert run.info["recall"]["1"] == run.info["measures"]["own"]["R@1"]
    assert run.info["fusion"] == WEIGHTS.to_dict()
    assert "own: logit + 2 * cosine + 0.5 * chamfer, 4 candidates, fitted on val.txt\n" in run.printed
    assert re.search(r"(?m)^own \(logit \+ 2 \* cosine \+ 0\.5 \* chamfer, 4 candidates\) +\d", run.printed)
    table = [line.split(",") for line in (tmp_path / "eval" / "per_query.csv").read_text().splitlines()]
    column = table[0].index("rank_own")
    matches = positions // 4 == np.arange(20)[:, None] // 4
    assert [int(row[column]) for row in table[1:]] == (1 + matches.argmax(axis=1)).tolist()

    is_match, genuine = fused > CALIBRATION.threshold, cached[:, :4] // 4 == np.arange(20)[:, None] // 4
    assert 0 < is_match[~genuine].mean() < 1 and 0 < is_match[genuine].mean() < 1
    assert run.info["matches"]["false_match_rate"] == pytest.approx(is_match[~genuine].mean())
    assert run.info["matches"]["false_non_match_rate"] == pytest.approx(1 - is_match[genuine].mean())
    assert sum(part["num_pairs"] for part in run.info["matches"]["reliability"]) == 80
    assert "own, at the threshold for a false match rate of 1 % among candidates: " in run.printed
    assert "matches" not in evaluate(path, "val.txt").info  # the photos that they were fitted on


def test_an_evaluation_shows_what_a_cascade_loses(evaluate, weighted, tmp_path):
    cascade = WEIGHTS._replace(margin=0.02)
    run = evaluate(weighted(cascade))
    candidates, labels = load_scores(tmp_path / "eval")
    first = (2 * candidates.cosines + 0.5 * candidates.chamfer)[:, :4]
    share = (first.max(axis=1, keepdims=True) - first <= np.float32(0.02)).mean()
    assert 0.25 < share < 1
    positions = ranking_by(candidates, cascade.cascade).positions
    assert run.info["measures"]["cascade"] == measures_of(positions, *labels[:2], [1, 10], True).values
    assert re.search(rf"(?m)^cascade \({100 * share:.1f} % of the logits, margin 0\.02\) +\d", run.printed)
    assert "cascade" not in evaluate(weighted(WEIGHTS)).info["measures"]


@pytest.mark.parametrize(
    ("record", "changes", "reason"),
    [
        (WEIGHTS, {"num_candidates": 3}, "they are for 4 candidates, and 3 are scored"),
        (WEIGHTS, {"scorer": "chamfer"}, "they need logits"),
        (None, {}, "it has none; keep_fusion=True fits them on validation images"),
    ],
)
def test_weights_that_cannot_be_used(evaluate, weighted, checkpoint, monkeypatch, record, changes, reason):
    path = checkpoint if record is None else weighted(record)
    run = evaluate(path, **changes)
    assert (f"the checkpoint's own weights are not used: {reason}\n" in run.printed) == (record is not None)
    assert "own" not in run.info["measures"] and "matches" not in run.info
    monkeypatch.setattr(eval_rerank, "score_candidates", None)
    with pytest.raises(CommandError, match=rf"fusion='own' ranks by the checkpoint's own weights: {re.escape(reason)}"):
        evaluate(path, fusion="own", **changes)


def test_weights_without_logits_rank_without_a_matcher(evaluate, weighted):
    run = evaluate(weighted(WITHOUT_LOGIT), scorer="chamfer", fusion="own")
    assert "own: 2 * cosine + 0.5 * chamfer, 4 candidates, fitted on val.txt" in run.printed
    assert run.info["recall"]["1"] == run.info["measures"]["own"]["R@1"] and "matches" not in run.info


@pytest.mark.parametrize("layout", ["ours", "state", "bare"])
def test_an_evaluation_fits_and_keeps_them(evaluate, weighted, checkpoint, tmp_path, layout):
    state, path = torch.load(checkpoint), tmp_path / "kept.pt"
    before = read(weighted(WEIGHTS)) if layout == "ours" else {"state": state} if layout == "state" else state
    save_tensors(path, before)
    made_from = before["made_from"] if layout == "ours" else digest(path)
    run = evaluate(path, "val.txt", "val.txt", keep_fusion=True, fusion="own")
    expected = fit(*load_scores(tmp_path / "eval"), True, "val.txt")
    content = read(path)
    assert content["fusion"] == run.info["fusion"] == expected.to_dict()
    assert (content["made_from"], content.get("origin")) == (made_from, before.get("origin"))
    assert content["state"].keys() == state.keys()
    assert all(torch.equal(content["state"][name], tensor) for name, tensor in state.items())
    assert run.info["md5"][str(path)] == digest(path)
    assert f"for new photos: {expected.weights}; fitted on 20 photos" in run.printed and "matches" not in run.info
    model = {name: value for name, value in TINY["model"].items() if name in ANSWER_SETTINGS}
    assert Reranker.from_pretrained(path, 64, "cpu", **model).fusion == expected
    assert evaluate(path, fusion="own").info["fusion"] == expected.to_dict()


def test_two_processes_keep_the_weights_of_one(evaluate, tiny, neighbours, checkpoint, tmp_path):
    paths = [tmp_path / "one.pt", tmp_path / "two.pt"]
    for path in paths:
        shutil.copyfile(checkpoint, path)

    def work():
        if rank():
            settings = {"resume": str(paths[1]), "cache_nn_inds": str(neighbours / "test.pkl"), "keep_fusion": True}
            data = {"test_file": "val.txt", "val_file": "val.txt"}
            eval_rerank.add_fusion = None  # type: ignore[assignment]
            eval_rerank.ex.run(config_updates=tiny(**settings, temp_dir=tmp_path / "eval", dataset=data))
        else:
            evaluate(paths[1], "val.txt", "val.txt", keep_fusion=True)

    evaluate(paths[0], "val.txt", "val.txt", keep_fusion=True)
    in_processes(2, work, tmp_path / "results")
    expected, found = (FittedWeights.from_dict(read(path)["fusion"]) for path in paths)
    assert found[:9] == expected[:9]
    assert found.calibration == pytest.approx(expected.calibration, rel=1e-2)


@pytest.mark.parametrize(
    ("test_file", "val_file"), [("test.txt", None), ("test.txt", "val.txt"), (["test.txt"] * 2, None)]
)
def test_weights_are_not_fitted_on_test_photos(evaluate, checkpoint, test_file, val_file):
    with pytest.raises(CommandError, match=r"keep_fusion=True fits weights on the evaluated images, which must not be"):
        evaluate(checkpoint, test_file, val_file, keep_fusion=True)


def test_scores_that_rank_nothing_are_not_kept(evaluate, weighted, monkeypatch):
    path = weighted(WEIGHTS)
    before = path.read_bytes()
    monkeypatch.setattr("utils.retrieval.rankings.cosine_rank_correlation", None)  # which comes after the check
    scored = eval_rerank.score_candidates

    def collapsed(*arguments):
        candidates = scored(*arguments)
        return candidates._replace(logits=np.zeros_like(candidates.logits))

    monkeypatch.setattr(eval_rerank, "score_candidates", collapsed)
    with pytest.raises(CommandError, match="the matcher gives all candidates of each query one score"):
        evaluate(path, "val.txt", "val.txt", keep_fusion=True)
    assert path.read_bytes() == before


@pytest.mark.parametrize("damage", [3, {}, {**WEIGHTS.to_dict(), "cosine": -1.0}, {**WEIGHTS.to_dict(), "colour": 1}])
def test_a_damaged_record(evaluate, weighted, checkpoint, damage):
    path = weighted(WEIGHTS)
    save_tensors(path, read(path) | {"fusion": damage})
    with pytest.raises(CommandError, match=rf"{path}: weights(\.cosine=-1\.0| must be a record of logit, cos).*: fit"):
        evaluate(path)
