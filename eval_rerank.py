"""Reranking: rescore the cached neighbours of each query, report R@K of several rankings (paper, section 4)."""

import startup

from pathlib import Path

import torch
from sacred import Experiment

from models.costs import print_costs
from models.ingredient import load_model, model_ingredient, resizing
from models.settings import MODEL_RULES
from sop.images.transforms import Resizing
from sop.ingredient import DATASET_RULES, data_ingredient, get_loaders, input_files
from utils.errors import InputError
from utils.evaluation import score_candidates
from utils.experiment import command
from utils.experiment.command import note_files, report_best_ranking, report_recalls
from utils.experiment.fusion import fit_fusion
from utils.experiment.sacred_setup import reports_errors, set_up
from utils.io.disk import check_disk_space, md5
from utils.io.kept_fusion import add_fusion
from utils.io.neighbours import INDS
from utils.metrics import MAX_CANDIDATES
from utils.retrieval.fitted import FittedWeights
from utils.retrieval.ranking import WEIGHT
from utils.retrieval.rankings import check_own, rank_candidates, report_matches, report_rankings
from utils.retrieval.results import Labels, keep_scores, load_scores, save_evaluation
from utils.runtime.ranks import is_main_process
from utils.settings import FLAG, TEXT, Rule, check_settings, one_of, whole_number

startup.done()

ex = set_up(Experiment("Rerank (eval)", ingredients=[data_ingredient, model_ingredient]))

BYTES_A_CANDIDATE = 32  # position and score, and in scores.npz position and three scores


@ex.config
def config():
    temp_dir = "logs/temp"  # where nn_inds.pkl, nn_dists.pkl (scores), per_query.csv and scores.npz are written
    resume = None  # checkpoint; None: a pretrained backbone, for scorer=chamfer
    cache_nn_inds = "caches/sop/nn_inds_test.pkl"  # neighbour file of the test images
    scorer = "matcher"  # or 'chamfer': no matcher, but the Chamfer similarity of feature maps
    num_candidates = 100  # neighbours of each query that are rescored; the others keep their places behind them
    fusion = None  # ranking to write; None: the scorer's; [w, v]: (logit +) w * cosine + v * chamfer; 'crossfit'; 'own'
    keep_fusion = False  # True: fit weights on the evaluated images, and keep them in the checkpoint
    features = None  # folder that caches descriptors and feature maps; the maps are scored from their file
    cpu = False  # True: compute on the CPU even where there is a GPU
    cudnn_flag = "benchmark"  # or 'deterministic'
    precision = None  # 'fp32', 'tf32', 'bf16' or 'fp16'; None: fp32 on a CPU, tf32 on CUDA
    timeout_minutes = 10  # how long to wait for another rank (torchrun), or for a batch of the loader's workers
    seed = 0


def is_fusion(value: object) -> bool:
    """Whether a value of `fusion` is valid."""
    if isinstance(value, list | tuple) and len(value) == 2:
        return all(map(WEIGHT.accepts, value))
    return value in (None, "crossfit", "own")


RULES = {
    "": {
        "resume": TEXT.or_none(),
        "cache_nn_inds": TEXT,
        "scorer": one_of("matcher", "chamfer"),
        "num_candidates": whole_number(1),
        "fusion": Rule(
            "None, two numbers from 0 to 1,000,000 ([w, v]), 'crossfit' or 'own'", is_fusion, " is unknown: give"
        ),
        "keep_fusion": FLAG,
        "features": TEXT.or_none(),
    },
    "dataset": DATASET_RULES,
    "model": MODEL_RULES,
}
begin_run = ex.capture(command.begin_run)


@ex.command
@reports_errors
def sweep(temp_dir):
    """Try weights on the saved scores of an evaluation in temp_dir, without scoring again."""
    from utils.retrieval.sweep import sweep_weights  # imports matplotlib

    check_settings({"temp_dir": temp_dir}, {"temp_dir": TEXT})
    picture = Path(temp_dir) / "sweep.png"
    sweep_weights(*load_scores(temp_dir), picture)
    print(f"{picture} shows R@1 over the weights")


def check_combination(config) -> None:
    """Raise InputError for settings that contradict each other."""
    dataset, neighbours = config["dataset"], config["cache_nn_inds"]
    if config["keep_fusion"] and dataset["test_file"] != dataset["val_file"]:
        raise InputError(
            "keep_fusion=True fits weights on the evaluated images, which must not be the test set: set "
            "dataset.test_file and dataset.val_file to one list of validation images"
        )
    needs_checkpoint = config["scorer"] == "matcher" or config["keep_fusion"] or not config["model"]["pretrained"]
    if config["resume"] is None and needs_checkpoint:
        raise InputError("no checkpoint was given: reranking needs a trained model, set resume=FILE")
    if Path(neighbours).resolve() == (Path(config["temp_dir"]) / INDS).resolve():
        raise InputError(f"cache_nn_inds={neighbours} would be overwritten by the result: set another temp_dir")


@ex.automain
@reports_errors
def main(
    _run,
    _config,
    temp_dir,
    resume,
    cache_nn_inds,
    scorer,
    num_candidates,
    fusion,
    keep_fusion,
    features,
    timeout_minutes,
    dataset,
    seed,
):
    """Rescore the neighbours of each query, and report R@K of several rankings."""
    with begin_run(RULES) as (device, dtype):
        resized = {"resizing": Resizing(**resizing(dataset["crop_size"]))}
        check_combination(_config)
        torch.manual_seed(seed)
        loaders, recall_ks = get_loaders(training=False, device=device, timeout_minutes=timeout_minutes, **resized)
        neighbours = loaders.neighbours(cache_nn_inds)
        if num_candidates > neighbours.shape[1]:
            print(f"num_candidates={num_candidates}, but there are {neighbours.shape[1]} neighbours: all are rescored")
        neighbours = neighbours[:, : max(num_candidates, MAX_CANDIDATES)].clone()
        check_disk_space({Path(temp_dir): neighbours.numel() * BYTES_A_CANDIDATE}, "the result")
        torch.manual_seed(seed)
        model, origin = load_model(loaders.num_classes, resume, device, crop_size=dataset["crop_size"])
        note_files(_run, resume, cache_nn_inds, *input_files())
        print_costs(model, dataset["crop_size"], loaders.num_test_photos, dtype, scorer)
        with_matcher = scorer == "matcher"
        own = FittedWeights.of_file(origin.fusion, resume)
        if fusion == "own" and not keep_fusion:
            check_own(own, min(num_candidates, neighbours.shape[1]), with_matcher)
        if with_matcher and origin.matcher_trained is False:
            print(f"checkpoint {resume}: its matcher was never trained, its logits are random (see scorer=chamfer)")
        candidates = score_candidates(
            model, neighbours, num_candidates, loaders.query, loaders.gallery, dtype, features, with_matcher
        )
        labels = Labels.of(loaders.query, loaders.gallery)
        _run.info["scores_md5"] = keep_scores(temp_dir, candidates, labels)
        if keep_fusion:
            own = fit_fusion(candidates, labels, dataset["test_file"])
        rankings = rank_candidates(candidates, labels, fusion, own)
        if keep_fusion and own is not None and is_main_process():
            add_fusion(resume, own.to_dict())
            _run.info["md5"][str(resume)] = md5(resume)
        measures = rankings.measures(labels, recall_ks)
        written = rankings.rankings[rankings.written]
        recalls = {k: measures[rankings.written].values[f"R@{k}"] for k in recall_ks}
        try:
            save_evaluation(temp_dir, loaders.query.dataset, written, measures)
        finally:  # the result is printed even if it cannot be written
            report_rankings(rankings, measures, labels.queries, recall_ks, _run.info)
            if own is not None:
                _run.info["fusion"] = own.to_dict()
                if own.fitted_on != dataset["test_file"]:
                    report_matches(candidates, labels, own, _run.info)
            report_recalls(_run, recalls, written.positions.shape[1])
            report_best_ranking(measures, recall_ks[0])
        return recalls[recall_ks[0]]
