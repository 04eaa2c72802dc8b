"""The four commands on a tiny dataset: the whole chain, what it leaves behind, and what it refuses."""

import hashlib
import json
import os
import re
import runpy
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sacred import Experiment
from torch.backends import cudnn
from tqdm import tqdm

import eval_global
import eval_rerank
import experiment_global
import experiment_rerank
from tests import ROOT
from tests.faults import fill_disk, names
from tests.processes import in_processes
from utils import Contrastive, pickle_load, pickle_save
from utils.experiment.run_folder import CommandError
from utils.experiment.sacred_setup import set_up
from utils.io.checkpoint import TrainingInfo
from utils.io.lock import exclusive_lock


def steps(metrics, name):
    return metrics[name]["steps"]


HEADER = "query,path,class,rank_global,rank_logit,rank_chamfer_cosine,rank_logit_cosine_chamfer"


def test_global_then_reranking(tiny, observed, tmp_path, device):
    tiny = partial(tiny, cpu=device.type == "cpu", precision="fp32")
    data = {"batch_size": 12, "num_iterations": 3}
    trained = observed(
        experiment_global.ex,
        named_configs=["dataset.sop_global", "model.resnet50"],
        **tiny(temp_dir=tmp_path / "global", epochs=2, lr=0.01, dataset=data, model={"set_bn_eval": False}),
    )
    checkpoint = tmp_path / "global" / "resnet18_sop_global.pt"
    assert trained.result == trained.info["recall"]["1"] == max(trained.metrics["val.recall@1"]["values"])
    assert steps(trained.metrics, "train.loss") == pytest.approx([i / 3 for i in range(6)])
    assert steps(trained.metrics, "val.recall@1") == steps(trained.metrics, "val.recall@10") == [0, 1, 2]
    assert trained.run["artifacts"] == ["resnet18_sop_global.pt"]
    assert (trained.folder / "resnet18_sop_global.pt").read_bytes() == checkpoint.read_bytes()
    assert "trainable parameters: 501,359" in trained.printed
    validations = re.findall(r"^Validation (.*?) ?\{1: [\d.]+, 10: [\d.]+\}(.*)$", trained.printed, re.MULTILINE)
    assert validations == [("before training", ""), ("[000]", " after epoch 1 of 2"), ("[001]", " after epoch 2 of 2")]
    best = max(range(3), key=lambda epoch: (trained.metrics["val.recall@1"]["values"][epoch], epoch))
    recalls = ", ".join(f"R@{k} {recall:.2f}" for k, recall in trained.info["recall"].items())
    when = f"{best} of 2" if best else "0, before training"
    assert trained.printed.splitlines()[-1] == f"best epoch: {when}; {recalls}; checkpoint {checkpoint}"
    assert re.search(r"Training   \[001\]: 100%.*acc=[\d.]+, loss=[\d.]+, lr=1.0e-02", trained.printed)

    evaluated = {}
    for query_set, rows in (("test", 20), ("train", 24)):
        folder = tmp_path / f"eval_{query_set}"
        changes = tiny(temp_dir=folder, resume=str(checkpoint), query_set=query_set)
        evaluated[query_set] = observed(eval_global.ex, None, ["dataset.sop_global", "model.resnet50"], **changes)
        distances, positions = pickle_load(folder / "nn_dists.pkl"), pickle_load(folder / "nn_inds.pkl")
        assert (distances.shape, distances.dtype) == ((rows, 10), np.float32)
        assert (positions.shape, positions.dtype) == ((rows, 10), np.int64)
        assert not (positions == np.arange(rows)[:, None]).any()
        assert (np.diff(distances, axis=1) >= 0).all()
    assert evaluated["test"].info["recall"] == trained.info["recall"]
    last = f"best ranking: global, R@1 {trained.info['recall']['1']:.2f}"
    assert evaluated["test"].printed.splitlines()[-1] == last

    caches = {"cache_nn_inds": str(tmp_path / "eval_test" / "nn_inds.pkl")}
    data = {"train_cache_nn_inds": str(tmp_path / "eval_train" / "nn_inds.pkl"), "batch_size": 18}
    for name, frozen in (("frozen", True), ("finetune", False)):
        trained = observed(
            experiment_rerank.ex,
            named_configs=["dataset.sop_rerank", "model.resnet50"],
            **tiny(
                **caches,
                temp_dir=tmp_path / name,
                resume=str(checkpoint),
                epochs=1,
                frozen_views=2 if frozen else None,
                dataset=data,
                model={"freeze_backbone": frozen},
            ),
        )
        before = torch.load(checkpoint, weights_only=True)["state"]
        checkpoint = tmp_path / name / "resnet18_sop_rerank.pt"
        after = torch.load(checkpoint, weights_only=True)["state"]
        if frozen:
            assert all(torch.equal(before[key], after[key]) for key in before if key.startswith(("layer", "remap.")))
        assert steps(trained.metrics, "train.loss") == [0, 0.25, 0.5, 0.75]
        assert trained.result == trained.info["recall"]["1"]

    reranked = observed(
        eval_rerank.ex,
        None,
        ["dataset.sop_rerank", "model.resnet50"],
        **tiny(**caches, temp_dir=tmp_path / "reranked", resume=str(checkpoint)),
    )
    logits = pickle_load(tmp_path / "reranked" / "nn_dists.pkl")
    positions = pickle_load(tmp_path / "reranked" / "nn_inds.pkl")
    assert (logits.dtype, positions.dtype) == (np.float32, np.int64)
    assert (np.diff(logits, axis=1) <= 0).all()
    assert np.array_equal(np.sort(positions), np.sort(pickle_load(caches["cache_nn_inds"])))
    assert reranked.info["recall"] == trained.info["recall"]  # 10 candidates either way
    assert re.search(r"(?m)^logit, R@1: \d+ queries gained, \d+ lost: \S+ points \(95 % interval", reranked.printed)
    table = (tmp_path / "reranked" / "per_query.csv").read_text().splitlines()
    assert (table[0], len(table)) == (HEADER, 21)
    assert table[1].startswith("0,toy_final/6_0.JPG,6,")
    measures = reranked.info["measures"]
    assert set(measures) == {"global", "logit", "chamfer + cosine", "logit + cosine + chamfer"}
    assert all(set(row) == {"R@1", "R@10", "mAP@R", "R-precision", "MRR"} for row in measures.values())
    assert [measures["logit"][f"R@{k}"] for k in (1, 10)] == list(reranked.info["recall"].values())
    assert measures["global"] == evaluated["test"].info["measures"]["global"]
    best = max(("global", "logit", *measures), key=lambda name: measures[name]["R@1"])
    assert reranked.printed.splitlines()[-1] == f"best ranking: {best}, R@1 {measures[best]['R@1']:.2f}"
    sums = {Path(path).name for path in reranked.info["md5"]}
    assert sums == {"resnet18_sop_rerank.pt", "nn_inds.pkl", "train.txt", "test.txt"}
    assert reranked.info["md5"][str(checkpoint)] == hashlib.md5(checkpoint.read_bytes()).hexdigest()
    assert set(reranked.info["versions"]) == {"python", "torch", "cuda", "faiss", "device"}
    assert reranked.info["versions"]["torch"] == str(torch.__version__)
    assert str({int(k): recall for k, recall in reranked.info["recall"].items()}) in reranked.printed


def test_evaluation_does_not_autotune(tiny, observed, tmp_path):
    observed(eval_global.ex, **tiny(temp_dir=tmp_path))
    assert not cudnn.benchmark


FORMULAS = {
    None: lambda logits, cosines, chamfer: logits,
    (2.0, 0.5): lambda logits, cosines, chamfer: logits + 2 * cosines + 0.5 * chamfer,
}


@pytest.mark.parametrize("fusion", FORMULAS)
@pytest.mark.parametrize(("num_candidates", "columns"), [(100, 19), (4, 19)])
def test_written_ranking(tiny, observed, neighbours, checkpoint, tmp_path, fusion, num_candidates, columns):
    settings = {"resume": checkpoint, "cache_nn_inds": str(neighbours / "test.pkl"), "num_candidates": num_candidates}
    run = observed(eval_rerank.ex, **tiny(temp_dir=tmp_path, fusion=fusion and list(fusion), **settings))
    scores = np.load(tmp_path / "scores.npz")
    fused = FORMULAS[fusion](scores["logits"], scores["cosines"], scores["chamfer"])
    m = min(num_candidates, columns)
    assert fused.shape == (20, m)
    order = np.argsort(-fused, axis=1, kind="stable")
    cached = pickle_load(neighbours / "test.pkl")
    positions, values = pickle_load(tmp_path / "nn_inds.pkl"), pickle_load(tmp_path / "nn_dists.pkl")
    assert np.array_equal(positions[:, :m], np.take_along_axis(cached[:, :m], order, axis=1))
    assert np.array_equal(positions[:, m:], cached[:, m:])
    np.testing.assert_allclose(values[:, :m], np.take_along_axis(fused, order, axis=1), rtol=1e-5, atol=1e-6)
    assert (values[:, m:] == -np.inf).all()
    rows = ["global", "logit"] + ["weighted"] * (fusion is not None)
    if m == 19:  # among the first four, one fold of classes has no match
        rows += ["chamfer + cosine", "logit + cosine + chamfer"]
    assert set(run.info["measures"]) == set(rows)
    assert ("num_candidates=100, but there are 19 neighbours: all are rescored" in run.printed) == (m == 19)


def test_ranking_without_a_matcher(tiny, observed, neighbours, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("models.matcher.Matcher.score", None)
    settings = {"resume": checkpoint, "cache_nn_inds": str(neighbours / "test.pkl"), "scorer": "chamfer"}
    run = observed(eval_rerank.ex, **tiny(temp_dir=tmp_path, **settings))
    assert set(run.info["measures"]) == {"global", "chamfer", "chamfer + cosine"}
    scores = np.load(tmp_path / "scores.npz")
    assert "logits" not in scores
    assert np.array_equal(pickle_load(tmp_path / "nn_dists.pkl"), -np.sort(-scores["chamfer"], axis=1))
    assert run.info["recall"]["1"] == run.info["measures"]["chamfer"]["R@1"]


def test_crossfit_and_sweep(tiny, observed, neighbours, checkpoint, tmp_path):
    settings = {"resume": checkpoint, "cache_nn_inds": str(neighbours / "test.pkl"), "fusion": "crossfit"}
    run = observed(eval_rerank.ex, **tiny(temp_dir=tmp_path, **settings))
    assert run.info["recall"]["1"] == run.info["measures"]["logit + cosine + chamfer"]["R@1"]
    title = re.escape("logit + cosine + chamfer (crossfit)")
    chosen = re.search(rf"(?m)^{title}: for new photos, chosen on all classes: (.*)", run.printed)[1]
    swept = observed(eval_rerank.ex, "sweep", **tiny(temp_dir=tmp_path))
    assert f"for new photos: {chosen}" in swept.printed
    assert len(re.findall("^fold [1-5]: ", swept.printed, re.MULTILINE)) == 10
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_crossfit_with_too_few_classes(tiny, observed, photos, checkpoint, tmp_path):
    lines = (photos / "test.txt").read_text().splitlines()
    (photos / "four.txt").write_text("\n".join(lines[:16]))
    pickle_save(tmp_path / "nn.pkl", np.array([[j for j in range(16) if j != i] for i in range(16)]))
    settings = {"resume": checkpoint, "cache_nn_inds": str(tmp_path / "nn.pkl"), "fusion": "crossfit"}
    run = observed(eval_rerank.ex, **tiny(temp_dir=tmp_path, **settings, dataset={"test_file": "four.txt"}))
    assert "logit + cosine + chamfer (crossfit): left out, weights are chosen over 5 folds of classes" in run.printed
    assert set(run.info["measures"]) == {"global", "logit"}
    assert run.info["recall"]["1"] == run.info["measures"]["logit"]["R@1"]
    swept = observed(eval_rerank.ex, "sweep", **tiny(temp_dir=tmp_path))
    assert "no choice of weights: weights are chosen over 5 folds of classes" in swept.printed


@pytest.mark.parametrize("precision", ["tf32", "bf16", "fp16"])
def test_other_precisions_on_a_device(tiny, observed, neighbours, tmp_path, device, precision):
    """Trained and evaluated with a frozen backbone and micro-batches."""
    settings = {"cpu": device.type == "cpu", "precision": precision, "cache_nn_inds": str(neighbours / "test.pkl")}
    data = {"sampler": "triplet", "batch_size": 24, "train_cache_nn_inds": str(neighbours / "train.pkl")}
    trained = observed(
        experiment_rerank.ex,
        **tiny(
            **settings,
            temp_dir=tmp_path / "train",
            epochs=1,
            micro_batch=12,
            dataset=data,
            model={"freeze_backbone": True},
        ),
    )
    assert all(0.3 < loss < 3 for loss in trained.metrics["train.loss"]["values"])
    checkpoint = str(tmp_path / "train" / "resnet18_sop.pt")
    evaluated = observed(eval_rerank.ex, **tiny(**settings, temp_dir=tmp_path / "eval", resume=checkpoint))
    assert evaluated.info["recall"]["10"] >= evaluated.info["recall"]["1"]
    assert ("peak_cuda_memory_gb" in evaluated.info) == (device.type == "cuda")


@pytest.mark.parametrize("command", [eval_global, eval_rerank])
def test_warns_of_another_crop_size_than_in_training(tiny, observed, neighbours, checkpoint, tmp_path, command):
    state = torch.load(checkpoint, weights_only=True)
    caches = {"cache_nn_inds": str(neighbours / "test.pkl")} if command is eval_rerank else {}
    for crop_size in (64, 96):
        path = tmp_path / f"{crop_size}.pt"
        torch.save({"state": state, "origin": TrainingInfo({}, True, crop_size)._asdict()}, path)
        run = observed(command.ex, **tiny(resume=str(path), **caches, temp_dir=tmp_path / "out"))
        told = f"checkpoint {path} was trained with dataset.crop_size=96, not 64: its answers"
        assert (told in run.printed) == (crop_size == 96)


@pytest.mark.parametrize("model", [{"norm_layer": "batch"}, {"set_bn_eval": False}])
def test_batch_norm_of_one_image_is_refused(tiny, tmp_path, capsys, model):
    data = {"batch_size": 1, "sample_per_id": 1, "crop_size": 32}
    settings = {"temp_dir": tmp_path, "epochs": 1, "dataset": data}
    with pytest.raises(CommandError, match=r"^dataset\.batch_size=1, but batch norms in training mode need several"):
        experiment_global.ex.run(config_updates=tiny(**settings, model=model), options={"--unobserved": True})
    assert "Validation" not in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="other tests have begun to use the CUDA device")
def test_cpu_setting_avoids_the_gpu(tiny, observed, neighbours, tmp_path, monkeypatch):
    def touched():
        raise AssertionError("the GPU was touched")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "_lazy_init", touched)
    data = {"batch_size": 12, "num_workers": 1}
    observed(experiment_global.ex, **tiny(temp_dir=tmp_path, epochs=1, dataset=data))
    state = {"temp_dir": tmp_path, "resume": str(tmp_path / "resnet18_sop.pt")}
    observed(eval_global.ex, **tiny(**state))
    # not experiment_rerank: torch's AdamW asks for the GPU's stream, wherever the parameters lie
    observed(eval_rerank.ex, **tiny(**state, cache_nn_inds=str(neighbours / "test.pkl")))


def test_captured_output_equals_terminal(observed):
    ex = set_up(Experiment("Bar"))

    @ex.main
    def main(_run):
        _run.log_scalar("bars", 1)
        with tqdm(range(3), desc="Bar") as progress:
            for i in progress:
                if i == 2:
                    _run._emit_heartbeat()
                    progress.set_postfix(acc="0.5")

    run = observed(ex)
    lines = run.printed.splitlines()
    assert len(lines) == 1
    assert re.fullmatch(r"Bar: 100%.* 3/3 \[.*, acc=0\.5\]", lines[0])
    assert 0.1 < run.info["peak_memory_gb"] < 100


def test_warns_of_evaluating_the_initial_model(tiny, observed, tmp_path):
    run = observed(eval_global.ex, **tiny(temp_dir=tmp_path / "new" / "folder", dataset={"recalls": [1, 1000]}))
    assert "evaluating the initial model" in run.printed
    assert "(K = 1000 counts over 19 neighbours)" in run.printed
    assert set(run.info["recall"]) == {"1", "1000"}
    assert "float64" not in run.printed + str(run.info)
    assert pickle_load(tmp_path / "new" / "folder" / "nn_inds.pkl").shape == (20, 19)


def test_approximate_index(tiny, observed, tmp_path):
    found = []
    for index in ("Flat", "IVF2,Flat;nprobe=2"):
        run = observed(eval_global.ex, **tiny(temp_dir=tmp_path / index, knn_index=index))
        assert ("finds 100.0 % of the exact first 10 neighbours" in run.printed) == (index != "Flat")
        found.append((run.info["recall"], pickle_load(tmp_path / index / "nn_dists.pkl")))
    assert found[0][0] == found[1][0]
    np.testing.assert_allclose(found[1][1], found[0][1], atol=1e-5)


def test_query_and_gallery_files(tiny, observed, photos, tmp_path):
    lines = (photos / "test.txt").read_text().splitlines()
    (photos / "q.txt").write_text("\n".join(lines[4::4]))
    (photos / "g.txt").write_text("\n".join(lines[1::4] + lines[2::4]))
    data = {"test_file": ["q.txt", "g.txt"]}
    run = observed(eval_global.ex, **tiny(temp_dir=tmp_path / "two", dataset=data))
    positions = pickle_load(tmp_path / "two" / "nn_inds.pkl")
    assert positions.shape == (4, 10)
    classes = [int(line.split(",")[1]) for line in lines]
    gallery, queries = np.array(classes[1::4] + classes[2::4]), np.array(classes[4::4])
    first = 100 * float((gallery[positions[:, 0]] == queries).mean())
    assert run.info["recall"] == {"1": first, "10": 100.0}
    observed(eval_global.ex, **tiny(temp_dir=tmp_path / "train", query_set="train", dataset=data))
    assert pickle_load(tmp_path / "train" / "nn_inds.pkl").shape == (24, 10)  # searched among themselves


def test_initial_state_is_best_without_improvement(tiny, observed, tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "resnet18_sop.pt").write_bytes(b"stale")
    recalls = iter([90.0, 10.0, 20.0])
    monkeypatch.setattr(
        experiment_global, "evaluate_global", lambda *_: ({1: (r := next(recalls)), 10: r}, None, np.zeros((20, 10)))
    )
    torch.manual_seed(364086339)
    run = observed(experiment_global.ex, **tiny(temp_dir=tmp_path / "run", epochs=2, dataset={"batch_size": 12}))
    assert (run.result, run.info["recall"]) == (90.0, {"1": 90.0, "10": 90.0})
    content = torch.load(run.folder / "resnet18_sop.pt", weights_only=True)
    assert content["scheduler"]["last_epoch"] == 0
    assert run.metrics["val.recall@1"]["values"] == [90.0, 10.0, 20.0]
    last = f"best epoch: 0, before training; R@1 90.00, R@10 90.00; checkpoint {tmp_path / 'run' / 'resnet18_sop.pt'}"
    assert run.printed.splitlines()[-1] == last


def test_nonfinite_loss_saves_nothing(tiny, observed, tmp_path, monkeypatch):
    class Broken(Contrastive):
        def forward(self, *args):
            return super().forward(*args) * torch.nan

    monkeypatch.setattr(experiment_global, "Contrastive", Broken)
    with pytest.raises(CommandError, match=r"^the loss is nan at epoch 1, iteration 1, of .* images \[\d+, "):
        observed(experiment_global.ex, **tiny(temp_dir=tmp_path / "run", epochs=2, dataset={"batch_size": 12}))
    state = torch.load(tmp_path / "run" / "resnet18_sop.pt", weights_only=True)["state"]
    assert all(tensor.isfinite().all() for tensor in state.values())
    run = json.loads((tmp_path / "sacred0" / "1" / "run.json").read_text())
    assert run["status"] == "FAILED"
    assert "the loss is nan" in run["fail_trace"][-1]


def test_previous_checkpoint_is_renamed(tiny, observed, tmp_path):
    settings = tiny(temp_dir=tmp_path, epochs=0, dataset={"batch_size": 12})
    checkpoint, contents = tmp_path / "resnet18_sop.pt", []
    for seed in (1, 2, 3):
        run = observed(experiment_global.ex, **settings, seed=seed)
        contents.append(checkpoint.read_bytes())
    assert f"{checkpoint} is of an earlier run and was moved to {tmp_path / 'resnet18_sop.2.pt'}" in run.printed
    kept = [(tmp_path / f"resnet18_sop{number}.pt").read_bytes() for number in (".1", ".2", "")]
    assert kept == contents and len(set(contents)) == 3
    resumed = observed(experiment_global.ex, **settings | {"resume": str(tmp_path / "resnet18_sop.1.pt")}, seed=4)
    states = [torch.load(path, weights_only=True) for path in (tmp_path / "resnet18_sop.1.pt", checkpoint)]
    assert all(torch.equal(tensor, states[1]["state"][name]) for name, tensor in states[0]["state"].items())
    assert resumed.info["md5"][str(tmp_path / "resnet18_sop.1.pt")] == hashlib.md5(contents[0]).hexdigest()
    assert states[1]["origin"]["matcher_trained"] is False
    assert states[1]["origin"]["model"]["ert_nhead"] == 4
    assert states[1]["origin"]["crop_size"] == 64


def test_warns_of_an_untrained_matcher(tiny, observed, neighbours, tmp_path):
    observed(experiment_global.ex, **tiny(temp_dir=tmp_path, epochs=0, dataset={"batch_size": 12}))
    settings = {"resume": str(tmp_path / "resnet18_sop.pt"), "cache_nn_inds": str(neighbours / "test.pkl")}
    line = "its matcher was never trained, its logits are random"
    assert line in observed(eval_rerank.ex, **tiny(temp_dir=tmp_path, **settings)).printed
    assert line not in observed(eval_rerank.ex, **tiny(temp_dir=tmp_path, **settings, scorer="chamfer")).printed
    with pytest.raises(CommandError, match=r"was trained with model\.ert_nhead=4, not 8: set the same"):
        observed(eval_rerank.ex, **tiny(temp_dir=tmp_path, **settings, model={"ert_nhead": 8}))
    trained = tiny(**settings, temp_dir=tmp_path / "rerank", epochs=0)
    trained["dataset"] |= {"sampler": "triplet", "train_cache_nn_inds": str(neighbours / "train.pkl"), "batch_size": 24}
    observed(experiment_rerank.ex, **trained)
    settings["resume"] = str(tmp_path / "rerank" / "resnet18_sop.pt")
    assert line not in observed(eval_rerank.ex, **tiny(temp_dir=tmp_path, **settings)).printed


def test_result_would_overwrite_its_input(tiny, observed, neighbours, tmp_path):
    cache = tmp_path / "nn_inds.pkl"
    cache.write_bytes((neighbours / "test.pkl").read_bytes())
    with pytest.raises(CommandError, match=r"cache_nn_inds=.*nn_inds\.pkl would be overwritten by the result"):
        observed(eval_rerank.ex, **tiny(temp_dir=tmp_path, resume="x.pt", cache_nn_inds=str(cache)))
    assert cache.read_bytes() == (neighbours / "test.pkl").read_bytes()


def test_temp_dir_is_locked(tiny, observed, tmp_path):
    with exclusive_lock(tmp_path / ".lock", "it", ""):
        for ex in (eval_global.ex, experiment_global.ex):
            with pytest.raises(CommandError, match=rf"temp_dir=\S+ is being written by process {os.getpid()} on \S+: "):
                observed(ex, **tiny(temp_dir=tmp_path))
    observed(eval_global.ex, **tiny(temp_dir=tmp_path))
    assert [name for name in names(tmp_path) if "." in name] == ["nn_dists.pkl", "nn_inds.pkl", "per_query.csv"]


def test_result_is_printed_if_it_cannot_be_saved(tiny, observed, tmp_path, monkeypatch, capsys):
    fill_disk(monkeypatch, "nn_inds.pkl.part", 10)
    with pytest.raises(CommandError, match=r"nn_inds\.pkl could not be written: No space left on device"):
        observed(eval_global.ex, **tiny(temp_dir=tmp_path / "run"))
    info = json.loads((tmp_path / "sacred0" / "1" / "info.json").read_text())
    assert set(info["recall"]) == {"1", "10"}
    assert str({int(k): recall for k, recall in info["recall"].items()}) in capsys.readouterr().out
    assert not list((tmp_path / "run").glob("*"))


@pytest.mark.parametrize("command", [eval_global, eval_rerank])
def test_result_is_saved_if_it_cannot_be_printed(
    command, tiny, observed, neighbours, checkpoint, tmp_path, monkeypatch
):
    def fail(*told):
        raise OSError("nobody listens")

    monkeypatch.setattr(command, "report_recalls", fail)
    settings = {"cache_nn_inds": str(neighbours / "test.pkl")} if command is eval_rerank else {}
    with pytest.raises(OSError, match="nobody listens"):
        observed(command.ex, **tiny(temp_dir=tmp_path / "run", resume=checkpoint, **settings))
    assert pickle_load(tmp_path / "run" / "nn_inds.pkl").shape[0] == 20
    assert (tmp_path / "run" / "per_query.csv").exists()


def test_disk_space_is_checked_first(tiny, observed, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    for ex, what in ((eval_global.ex, "the result"), (experiment_global.ex, "the checkpoint")):
        with pytest.raises(
            CommandError, match=rf"{what} in \S+( and \S+)? needs .* GB, but 1e-06 GB are free: make room"
        ):
            observed(ex, **tiny(temp_dir=tmp_path / "run", dataset={"batch_size": 12}))
    assert "Extracting" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("ex", "changes", "message"),
    [
        (eval_global.ex, {"query_set": "val"}, r"query_set='val' is unknown: choose from 'test', 'train'"),
        (eval_global.ex, {"cudnn_flag": "fast"}, r"cudnn_flag='fast' is unknown: choose from 'bench"),
        (eval_global.ex, {"knn_index": "IVF64"}, r"knn_index='IVF64' cannot be used: could not parse .* 'Flat' for"),
        (eval_global.ex, {"resume": "none.pt"}, r"checkpoint none\.pt does not exist: check resume="),
        (eval_rerank.ex, {"fusion": "best"}, r"fusion='best' is unknown: give None, two numbers from 0 to 1,000,000"),
        *(
            (eval_rerank.ex, {"fusion": value}, rf"fusion={re.escape(repr(value))} is unknown")
            for value in ([1, float("nan")], [1, -1], [1, 10**400], [1, True], [1])
        ),
        (eval_rerank.ex, {"num_candidates": 0}, r"num_candidates=0: give a whole number from 1"),
        (eval_rerank.ex, {"scorer": "cosine"}, r"scorer='cosine' is unknown: choose from 'matcher', 'chamfer'"),
        (eval_rerank.ex, {}, r"no checkpoint was given: reranking needs a trained model, set resume=FILE"),
        (eval_rerank.ex, {"resume": "x.pt"}, r"caches/sop/nn_inds_test\.pkl could not be read: No such file"),
        (experiment_rerank.ex, {"dataset": {"sampler": "triplet"}}, r"'triplet' needs dataset\.train_cache_nn_inds"),
        (experiment_rerank.ex, {"frozen_views": 4}, r"frozen_views=4 needs a frozen backbone: set model\.freeze_b"),
        (experiment_global.ex, {"dataset": {"recalls": [10]}}, r"dataset\.recalls=\[10\] .* R@1"),
        (experiment_rerank.ex, {"dataset": {"sampler": "triplet", "recalls": [10]}}, r"dataset\.recalls=\[10\] .* R@1"),
    ],
)
def test_invalid_settings_write_nothing(tiny, observed, tmp_path, ex, changes, message):
    with pytest.raises(CommandError, match=message):
        observed(ex, **tiny(temp_dir=tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()
    run = (tmp_path / "sacred0" / "1" / "run.json").read_text()
    assert '"status": "FAILED"' in run
    assert re.search(message.replace("'", ".").replace('"', "."), run.replace("\\\\", "\\"))


def test_unreadable_photo_gives_one_message(tiny, observed, photos, tmp_path):
    (photos / "broken.JPG").write_bytes(b"no photo")
    (photos / "with_broken.txt").write_text("broken.JPG,0")
    for workers in (0, 1):
        data = {"test_file": "with_broken.txt", "num_workers": workers}
        with pytest.raises(CommandError, match=r"^photo \S+broken\.JPG cannot be read \(.*\): replace it.*the list$"):
            observed(eval_global.ex, **tiny(temp_dir=tmp_path / "run", dataset=data))


def flags(config, prefix=""):
    for key, value in config.items():
        if isinstance(value, dict):
            yield from flags(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}={value}"


def test_command_lines(tiny, neighbours, tmp_path):
    checkpoint = tmp_path / "train" / "resnet18_sop.pt"
    runs: dict[str, dict] = {
        "experiment_global.py": {"epochs": 1, "temp_dir": tmp_path / "train", "dataset": {"batch_size": 12}},
        "eval_global.py": {"temp_dir": tmp_path / "eval", "resume": str(checkpoint)},
        "experiment_rerank.py": {"epochs": 1, "temp_dir": tmp_path / "rerank", "resume": str(checkpoint)},
        "eval_rerank.py": {"temp_dir": tmp_path / "final", "resume": str(tmp_path / "rerank" / "resnet18_sop.pt")},
    }
    runs["experiment_rerank.py"]["dataset"] = {"batch_size": 24, "sampler": "triplet"}
    runs["experiment_rerank.py"]["dataset"]["train_cache_nn_inds"] = str(neighbours / "train.pkl")
    for script in ("experiment_rerank.py", "eval_rerank.py"):
        runs[script]["cache_nn_inds"] = str(neighbours / "test.pkl")

    def run(script, changes):
        sys.argv = [script, "-F", str(tmp_path / "log"), "with", *flags(tiny(**changes))]
        runpy.run_path(str(ROOT / script), run_name="__main__")

    for script, changes in runs.items():
        in_processes(1, partial(run, script, changes), tmp_path / script)
        assert "Traceback" not in (tmp_path / script / "errors0").read_text()
    assert pickle_load(tmp_path / "final" / "nn_dists.pkl").shape == (20, 19)
    assert sorted(path.name for path in (tmp_path / "log").iterdir() if path.name.isdigit()) == ["1", "2", "3", "4"]


def test_a_failing_command_line(tmp_path):
    def command_line(*options):
        words = [sys.executable, "eval_rerank.py", *options, "with", "cpu=True"]
        return subprocess.run(words, cwd=ROOT, capture_output=True, text=True)

    done = command_line("-F", tmp_path)
    assert done.returncode == 1
    assert "Error: no checkpoint was given: reranking needs a trained model, set resume=FILE" in done.stderr
    assert "Traceback" not in done.stderr
    done = command_line("--unobserved", "--debug")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
