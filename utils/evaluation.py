"""Evaluation of global retrieval and of reranking, and the scores of candidates.

`dtype` is that of matrix products and convolutions.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from utils.errors import InputError
from utils.metrics import recall_at_ks, recall_at_ks_rerank
from utils.retrieval.chamfer import Chamfer
from utils.retrieval.crossfit import FIXED_WEIGHTS, fit_weights
from utils.retrieval.embedding import GLOBAL, LOCAL, embed
from utils.retrieval.knn import EXACT
from utils.retrieval.measures import MAP_AT_R, measures_of
from utils.retrieval.pair_scoring import Scorer, matcher_for, pair_scores
from utils.retrieval.ranking import Candidates, candidate_cosines, ranking_by
from utils.retrieval.rankings import check_last_scores_differ, check_scores_differ
from utils.retrieval.results import Labels


def evaluate_global(
    model,
    query_loader,
    gallery_loader,
    recall_ks: Sequence[int],
    dtype=torch.float32,
    knn_index: str = EXACT,
    features: str | None = None,
):
    """`recall_at_ks` of normalised global descriptors; without a gallery the queries are searched among themselves.

    With a folder `features`, descriptors are cached there (`utils.store.feature_cache`).
    """
    (descriptors, labels), gallery = _embed_sets(model, query_loader, gallery_loader, [GLOBAL], dtype, features)
    return recall_at_ks(descriptors, labels, recall_ks, gallery[0], gallery[1], True, knn_index)


def evaluate_rerank(
    model,
    cache_nn_inds: Tensor,
    query_loader,
    gallery_loader,
    recall_ks: Sequence[int],
    dtype=torch.float32,
    features: str | None = None,
):
    """`recall_at_ks_rerank` of the images' feature maps; `gallery_loader` and `features` as for `evaluate_global`.

    InputError if all candidates of each query have one score.
    """
    (maps, labels), gallery = _embed_sets(model, query_loader, gallery_loader, [LOCAL], dtype, features)
    recalls, logits, positions = recall_at_ks_rerank(
        maps, labels, recall_ks, model, cache_nn_inds, gallery[0], gallery[1]
    )
    check_scores_differ(logits, "the matcher")
    return recalls, logits, positions


def evaluate_fused(
    model,
    cache_nn_inds: Tensor,
    query_loader,
    gallery_loader,
    recall_ks: Sequence[int],
    dtype=torch.float32,
    with_matcher: bool = True,
):
    """`evaluate_rerank` by all scores, or those without a matcher, with the weights of `utils.retrieval.crossfit`.

    The global ranking is none of the choices: a validation is to tell how good these scores are. The recalls have
    mAP@R, too: R@1 says little of the few classes that a validation has. Where no weights can be chosen, as of too few
    classes, they are `FIXED_WEIGHTS`, and a line says so.
    """
    num_scored, loaders = cache_nn_inds.shape[1], (query_loader, gallery_loader)
    candidates = score_candidates(model, cache_nn_inds, num_scored, *loaders, dtype, with_matcher=with_matcher)
    check_last_scores_differ(candidates)
    labels = Labels.of(*loaders)
    try:
        ranking = fit_weights(candidates, labels, with_matcher, with_global=False).ranking
    except InputError as error:
        weights = FIXED_WEIGHTS[with_matcher]._replace(num_candidates=num_scored)
        print(f"ranked by {weights}: {error}")
        ranking = ranking_by(candidates, weights)
    measured = measures_of(ranking.positions, labels.queries, labels.gallery, recall_ks, labels.is_self_search).values
    return {k: measured[f"R@{k}"] for k in recall_ks} | {MAP_AT_R: measured[MAP_AT_R]}, *ranking


def score_candidates(
    model,
    neighbours: Tensor,
    num_candidates: int,
    query_loader,
    gallery_loader,
    dtype=torch.float32,
    features: str | None = None,
    with_matcher: bool = True,
) -> Candidates:
    """Compute all scores of the first `num_candidates` neighbours (n, k) of each query, in one pass over the photos."""
    queries, gallery = _embed_sets(model, query_loader, gallery_loader, [GLOBAL, LOCAL], dtype, features)
    descriptors, maps, _ = queries
    gallery_descriptors, gallery_maps, _ = queries if gallery[0] is None else gallery
    scored = neighbours[:, :num_candidates]
    scorers: list[Scorer] = [Chamfer(), *([matcher_for(model, gallery_maps.dtype)] if with_matcher else [])]
    chamfer, *logits = (scores.numpy() for scores in pair_scores(model, maps, gallery_maps, scored, scorers))
    cosines = candidate_cosines(descriptors, gallery_descriptors, scored)
    return Candidates(neighbours.numpy(), cosines, chamfer, logits[0] if logits else None)


def _embed_sets(
    model, query_loader, gallery_loader, outputs: Sequence[int], dtype: torch.dtype, features: str | None
) -> tuple[tuple, tuple]:
    """Outputs and labels of the queries, and of the gallery: all None if the queries are the gallery."""
    embedded, labels = embed(model, query_loader, outputs, "query", dtype, features)
    if gallery_loader is None:
        return (*embedded, labels), (None,) * (len(embedded) + 1)
    gallery_embedded, gallery_labels = embed(model, gallery_loader, outputs, "gallery", dtype, features)
    return (*embedded, labels), (*gallery_embedded, gallery_labels)
