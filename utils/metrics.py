"""Recall@K of global retrieval and of reranking (paper, section 4)."""

from collections.abc import Sequence

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from utils.retrieval.knn import EXACT, nearest_neighbours
from utils.retrieval.measures import recalls_of
from utils.retrieval.pair_scoring import rerank

MAX_CANDIDATES = 100  # as published


def recall_at_ks(
    query_features: Tensor,
    query_labels: Tensor,
    ks: Sequence[int],
    gallery_features: Tensor | None = None,
    gallery_labels: Tensor | None = None,
    cosine: bool = False,
    knn_index: str = EXACT,
) -> tuple[dict[int, float], np.ndarray, np.ndarray]:
    """Recall@K of search by squared L2 distance over descriptors (n, d) and (m, d), normalised when `cosine`.

    Without a gallery the queries are searched among themselves, each leaving itself out. Returns `({K: recall in %},
    distances, positions)`; the arrays have max(ks) columns, or fewer if there are fewer images. Search is exact unless
    `knn_index` names another index (`utils.retrieval.knn.make_index`). ValueError when only one of the gallery
    arguments is given, InputError for an index that faiss rejects.
    """
    gallery_labels = _checked_gallery_labels(query_labels, gallery_features, gallery_labels)
    if cosine:
        query_features = F.normalize(query_features, dim=1)
        gallery_features = None if gallery_features is None else F.normalize(gallery_features, dim=1)
    distances, positions = nearest_neighbours(query_features, gallery_features, max(ks), knn_index)
    return recalls_of(positions, query_labels, gallery_labels, ks), distances, positions


def recall_at_ks_rerank(
    query_features: Tensor,
    query_labels: Tensor,
    ks: Sequence[int],
    matcher: nn.Module,
    cache_nn_inds: Tensor,
    gallery_features: Tensor | None = None,
    gallery_labels: Tensor | None = None,
) -> tuple[dict[int, float], np.ndarray, np.ndarray]:
    """Recall@K after reranking each query's first 100 neighbours, of `cache_nn_inds` (n, K), by the matcher's logit.

    Features are feature maps (n, d, h, w) and (m, d, h, w); `matcher` is the whole model. Returns `({K: recall in %},
    logits, positions)`, sorted by falling logit, stably. If K exceeds the number of columns, recall counts over these.
    """
    gallery_labels = _checked_gallery_labels(query_labels, gallery_features, gallery_labels)
    gallery_features = query_features if gallery_features is None else gallery_features
    scores, positions = rerank(matcher, query_features, gallery_features, cache_nn_inds[:, :MAX_CANDIDATES])
    return recalls_of(positions, query_labels, gallery_labels, ks), scores, positions


def _checked_gallery_labels(query_labels: Tensor, features: Tensor | None, labels: Tensor | None) -> Tensor:
    if (features is None) != (labels is None):
        raise ValueError("gallery_features and gallery_labels go together: one was given without the other")
    return query_labels if labels is None else labels
