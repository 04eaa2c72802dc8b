"""Weights for a ranking of new photos, fitted on validation classes and kept in a checkpoint."""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils.errors import InputError
from utils.evaluation import score_candidates
from utils.io.checkpoint import load_weights
from utils.retrieval.fitted import FittedWeights, fit
from utils.retrieval.ranking import Candidates
from utils.retrieval.results import Labels


def fit_fusion(candidates: Candidates, labels: Labels, fitted_on: str) -> dict[str, Any] | None:
    """The record of weights fitted to scored candidates of the photos listed in `fitted_on`, which are printed.

    None, and the reason is printed, where none can be fitted.
    """
    try:
        fitted = fit(candidates, labels, candidates.logits is not None, fitted_on)
    except InputError as error:
        print(f"no weights of a ranking are fitted on {fitted_on}: {error}")
        return None
    print(describe(fitted))
    return fitted.to_dict()


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
) -> dict[str, Any] | None:
    """`fit_fusion` of a training's best checkpoint, on the `neighbours` of its validation images; `model` stays.

    None without a `val_file`: the test set is for evaluation.
    """
    if val_file is None:
        print("no weights of a ranking are fitted: dataset.val_file=None, and the test set is for evaluation")
        return None
    best = copy.deepcopy(model)
    load_weights(checkpoint, best, training=False)
    sets = loaders.query, loaders.gallery
    candidates = score_candidates(best, neighbours, neighbours.shape[1], *sets, dtype, with_matcher=with_matcher)
    return fit_fusion(candidates, Labels.of(*sets), val_file)
