"""What `objective` of experiment_rerank.py trains, chooses by and says."""

import numpy as np
import pytest
import torch

import eval_rerank
import experiment_rerank
from models.ingredient import get_model
from tests.conftest import TINY
from tests.narrow import narrow
from tests.processes import in_processes
from tests.reference import META
from tests.test_continue import Killed, killed_after, outcome
from utils import pickle_load, pickle_save
from utils.experiment.run_folder import CommandError
from utils.runtime.ranks import rank

CASES = {"joint": ("joint", 1, 24), "chamfer": ("chamfer", 1, 24), "softmax": ("chamfer", 3, 20)}
SETTINGS = CASES | {"two": ("chamfer", 2, 24)}
WIDTHS = [("19.pkl", 19), ("15.pkl", 15)]  # neighbour files and their columns


@pytest.fixture
def settings(tiny, neighbours, tmp_path):
    """What makes the settings of a training of 2 epochs of 3 to 6 iterations, in a folder."""

    def of(folder, case="joint", **changes):
        objective, num_negatives, batch_size = SETTINGS[case]
        data = {"batch_size": batch_size, "sampler": "triplet", "train_cache_nn_inds": str(neighbours / "train.pkl")}
        common = {"epochs": 2, "lr": 0.001, "scheduler_tau": [1], "cache_nn_inds": str(neighbours / "test.pkl")}
        common |= {"objective": objective, "num_negatives": num_negatives}
        return tiny(**common | {"dataset": data} | changes, temp_dir=tmp_path / folder)

    return of


def last(tmp_path, folder):
    return torch.load(tmp_path / folder / "last.pt", weights_only=True)


def run(observed, settings):
    if rank():
        experiment_rerank.ex.run(config_updates=settings)
        return None
    return observed(experiment_rerank.ex, **settings)


@pytest.mark.parametrize("case", ["joint", "softmax"])
def test_two_processes_come_to_what_one_comes_to(observed, settings, tmp_path, case):
    expected = run(observed, settings("one", case)).metrics
    (found, _) = in_processes(2, lambda: run(observed, settings("two", case)), tmp_path / "results")
    for series in ("train.loss", "train.acc", "val.recall@1"):
        np.testing.assert_allclose(found.metrics[series]["values"], expected[series]["values"], rtol=1e-4, atol=1e-5)
    one, two = last(tmp_path, "one"), last(tmp_path, "two")
    torch.testing.assert_close(two["criterion"], one["criterion"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(two["model"], one["model"], rtol=1e-2, atol=1e-3)
    scales = one["criterion"]
    assert abs(scales["chamfer.b"] - 10) > 0.1  # a hundredth of it without their own learning rate
    assert ("chamfer.c" in scales) == (case != "softmax")


@pytest.mark.parametrize("case", ["joint", "softmax"])
def test_a_killed_run_goes_on_as_if_it_had_not_been(observed, settings, tmp_path, monkeypatch, case):
    whole = outcome(observed(experiment_rerank.ex, **settings("whole", case)), tmp_path / "whole" / "resnet18_sop.pt")
    with monkeypatch.context() as patch:
        killed_after(4, patch)
        with pytest.raises(Killed):
            observed(experiment_rerank.ex, **settings("killed", case, save_minutes=0))
    continued = observed(experiment_rerank.ex, **settings("killed", case, continue_run=True))
    assert outcome(continued, tmp_path / "killed" / "resnet18_sop.pt") == whole
    expected, found = last(tmp_path, "whole"), last(tmp_path, "killed")
    for part in ("model", "criterion"):
        assert all(map(torch.equal, expected[part].values(), found[part].values()))
    with pytest.raises(CommandError, match=r"not the run that last\.pt is of: .*num_negatives=2, not [13]"):
        observed(experiment_rerank.ex, **settings("killed", "two", continue_run=True))


@pytest.mark.parametrize("case", CASES)
def test_what_is_trained_and_what_is_said_of_it(observed, settings, checkpoint, tmp_path, case):
    run = observed(experiment_rerank.ex, **settings("run", case, resume=checkpoint, lr=0.01))
    before, after = torch.load(checkpoint), last(tmp_path, "run")["model"]
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert {"remap_local", "layer4"} <= moved and ("matcher" in moved) == (case == "joint")
    best = torch.load(tmp_path / "run" / "resnet18_sop.pt", weights_only=True)
    assert best["origin"]["matcher_trained"] == (case == "joint")
    assert best["state"].keys() == before.keys()  # without b and c
    matcher = sum(tensor.numel() for name, tensor in before.items() if name.startswith("matcher."))
    trained = int(run.printed.split("trainable parameters: ")[1].split()[0].replace(",", ""))
    with narrow():
        network = sum(p.numel() for p in get_model(6, **META["default"] | TINY["model"]).parameters())
    assert trained == network + {"joint": 2, "chamfer": 2 - matcher, "softmax": 1 - matcher}[case]


def test_a_trained_matcher_stays_trained(observed, settings, tmp_path):
    observed(experiment_rerank.ex, **settings("joint"))
    trained = str(tmp_path / "joint" / "resnet18_sop.pt")
    observed(experiment_rerank.ex, **settings("chamfer", "chamfer", resume=trained))
    before, after = (
        torch.load(path, weights_only=True) for path in (trained, tmp_path / "chamfer" / "resnet18_sop.pt")
    )
    assert after["origin"]["matcher_trained"] is True
    assert all(
        torch.equal(before["state"][name], after["state"][name]) for name in before["state"] if "matcher" in name
    )


@pytest.mark.parametrize(("case", "ranking"), [("joint", "logit + cosine + chamfer"), ("chamfer", "chamfer + cosine")])
def test_the_best_epoch_is_that_of_the_fused_ranking(observed, settings, tiny, tmp_path, case, ranking):
    """The evaluation of the same 15 candidates tells the same recalls."""
    neighbours = {name: np.array([[(i + j) % 20 for j in range(1, n + 1)] for i in range(20)]) for name, n in WIDTHS}
    for name, positions in neighbours.items():
        pickle_save(tmp_path / name, positions)
    run = observed(experiment_rerank.ex, **settings("run", case, epochs=0, cache_nn_inds=str(tmp_path / "19.pkl")))
    cache = {"temp_dir": tmp_path / "eval", "cache_nn_inds": str(tmp_path / "15.pkl")}
    evaluated = observed(eval_rerank.ex, **tiny(resume=str(tmp_path / "run" / "resnet18_sop.pt"), **cache))
    measures = evaluated.info["measures"]
    best, recalls = last(tmp_path, "run")["best"], run.info["recall"]
    assert (best, recalls["1"]) == (measures[ranking]["mAP@R"], measures[ranking]["R@1"])
    assert best == recalls["mAP@R"] == run.metrics["val.mAP@R"]["values"][-1] != measures["logit"]["mAP@R"]
    assert f"}}, mAP@R {best} (K = " in run.printed or f"}}, mAP@R {best}\n" in run.printed
    assert "ranked by" not in run.printed


@pytest.mark.parametrize(
    ("case", "weights"), [("joint", "logit + 20 * cosine + 10 * chamfer"), ("chamfer", "0.5 * cosine + chamfer")]
)
def test_fixed_weights_where_none_can_be_chosen(observed, settings, tiny, neighbours, tmp_path, case, weights):
    run = observed(experiment_rerank.ex, **settings("run", case, epochs=0))
    assert f"ranked by {weights}, 15 candidates: in one of the folds of classes no query has a match" in run.printed
    pickle_save(tmp_path / "15.pkl", pickle_load(neighbours / "test.pkl")[:, :15])
    scorer = {"fusion": [20, 10]} if case == "joint" else {"fusion": [0.5, 1], "scorer": "chamfer"}
    cache = {"temp_dir": tmp_path / "eval", "cache_nn_inds": str(tmp_path / "15.pkl")}
    evaluated = observed(eval_rerank.ex, **tiny(resume=str(tmp_path / "run" / "resnet18_sop.pt"), **cache, **scorer))
    recalls = run.info["recall"]
    assert recalls.pop("mAP@R") in {row["mAP@R"] for row in evaluated.info["measures"].values()}
    assert recalls == evaluated.info["recall"]


@pytest.mark.parametrize("case", ["chamfer", "softmax"])
def test_embedded_views(observed, settings, case, tmp_path):
    """As a frozen backbone embeds them anew each time, but for the views drawn: here one crop of each photo."""
    frozen = {"model": {"freeze_backbone": True}}
    run = observed(experiment_rerank.ex, **settings("views", case, frozen_views=2, **frozen))
    losses = run.metrics["train.loss"]["values"]
    again = observed(
        experiment_rerank.ex, **settings("again", case, frozen_views=2, micro_batch=CASES[case][2] // 2, **frozen)
    )
    np.testing.assert_allclose(again.metrics["train.loss"]["values"], losses, rtol=1e-5)
    assert last(tmp_path, "views")["criterion"]["chamfer.b"] != 10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_negatives": 2}, r"num_negatives=2 goes with objective='chamfer' alone: set it, or num_negatives=1"),
        ({"objective": "chamfer", "num_negatives": 2}, r"batch_size=30 is no multiple of 4, .* for num_negatives=2"),
        (
            {"objective": "chamfer", "num_negatives": 28},
            r"num_negatives=28, but negatives come from the first 23 neigh",
        ),
        ({"dataset": {"sampler": "random"}}, r"dataset\.sampler='random': reranking is trained on triplets"),
        (
            {"model": {"num_local_features": 512, "freeze_backbone": True}},
            r"objective='joint' trains the local maps, a",
        ),
    ],
)
def test_settings_that_do_not_fit(observed, settings, changes, message):
    config = settings("run")
    for name, value in changes.items():
        config[name] = config[name] | value if isinstance(value, dict) else value
    config["dataset"] |= {"batch_size": 30}
    with pytest.raises(CommandError, match=message):
        observed(experiment_rerank.ex, **config)


def test_an_older_run_goes_on(observed, settings, tmp_path):
    published = {"objective": "published"}
    whole = outcome(
        observed(experiment_rerank.ex, **settings("whole", **published)), tmp_path / "whole" / "resnet18_sop.pt"
    )
    observed(experiment_rerank.ex, **settings("older", **published, epochs=1))
    content = last(tmp_path, "older")
    content["about"]["settings"] = content["about"]["settings"].replace(
        '"num_negatives": 1, "objective": "published", ', ""
    )
    torch.save(content, tmp_path / "older" / "last.pt")
    assert "objective" not in content["about"]["settings"]
    continued = observed(experiment_rerank.ex, **settings("older", **published, continue_run=True))
    assert outcome(continued, tmp_path / "older" / "resnet18_sop.pt") == whole
