"""Weights for a ranking of new photos, fitted on validation classes and kept in a checkpoint."""

import copy
from pathlib import Path

import torch
from torch import Tensor

from utils.distributed.collectives import broadcast_model
from utils.errors import InputError
from utils.evaluation import score_candidates
from utils.io.checkpoint import load_weights
from utils.retrieval.fitted import FittedWeights, fit
from utils.retrieval.ranking import Candidates
from utils.retrieval.results import Labels
from utils.runtime.ranks import is_main_process


def fit_fusion(candidates: Candidates, labels: Labels, fitted_on: str) -> FittedWeights | None:
    """Fit weights to scored candidates of the photos listed in `fitted_on`, and print them, or why there are none."""
    try:
        fitted = fit(candidates, labels, candidates.logits is not None, fitted_on)
    except InputError as error:
        print(f"no weights of a ranking are fitted on {fitted_on}: {error}")
        return None
    print(describe(fitted))
    return fitted


def describe(fitted: FittedWeights) -> str:
    """Fitted weights, and what they gained on the classes that they were fitted on, in one line."""
    gains = ", ".join(
        f"{name} {points:+.2f} ({low:+.2f} to {high:+.2f})"
        for name, (points, low, high) in (("R@1", fitted.recall_gain), ("mAP@R", fitted.precision_gain))
    )
    return (
        f"for new photos: {fitted.weights}; fitted on {fitted.num_queries} photos of {fitted.num_classes} classes "
        f"({fitted.fitted_on}), where cross-fitted weights change the global ranking by {gains}"
    )


def fit_best_checkpoint(
    checkpoint: Path,
    model: torch.nn.Module,
    neighbours: Tensor,
    loaders,
    dtype: torch.dtype,
    with_matcher: bool,
    val_file: str | None,
) -> FittedWeights | None:
    """`fit_fusion` of a training's best checkpoint, on the `neighbours` of its validation images; `model` stays.

    None without a `val_file`: the test set is for evaluation.
    """
    if val_file is None:
        print("no weights of a ranking are fitted: dataset.val_file=None, and the test set is for evaluation")
        return None
    best = copy.deepcopy(model)
    if is_main_process():  # the file is its own: other ranks may be on other machines, or here before it is written
        load_weights(checkpoint, best, training=False)
    broadcast_model(best)
    sets = loaders.query, loaders.gallery
    candidates = score_candidates(best, neighbours, neighbours.shape[1], *sets, dtype, with_matcher=with_matcher)
    return fit_fusion(candidates, Labels.of(*sets), val_file)
