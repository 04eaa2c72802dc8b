"""For pyvisim, https://pypi.org/project/pyvisim: an embedder of its stores, and a reranker of what they find."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from pyvisim.base import ImageEmbedderBase
from pyvisim.retrieval.data import Candidate
from pyvisim.utils.validation import Param, validate_params

from rrt.embedder import Images
from rrt.ranker import Ranker


class DescriptorEmbedder(ImageEmbedderBase):
    """Embeds by the descriptors of a network. pyvisim reads the photos, and does not turn them upright."""

    def __init__(self, reranker: Ranker):
        super().__init__()
        self._reranker = reranker

    def _embed(self, images: list[np.ndarray]) -> np.ndarray:
        return self._reranker.embed(images).descriptors.numpy()


class TransformerReranker:
    """Candidates of any store and embedder of pyvisim, ranked anew by what `Reranker.rerank` computes.

    A photo is read when it is a candidate for the first time; its features, some 26 kB, are kept in memory.
    """

    def __init__(self, reranker: Ranker):
        self._reranker = reranker
        self._features: dict[str, tuple[Any, Any]] = {}

    @validate_params(top_k=Param(int, ge=1))
    def rerank(self, candidates: Sequence[Candidate], top_k: int, query: Images) -> list[Candidate]:
        """The `top_k` best candidates of one query, best first, which have the highest scores.

        InputError, a ValueError, with the path, where a photo cannot be read.
        """
        paths = [candidate.path for candidate in candidates]
        ranked = self._reranker.rerank_ids(query, [paths], self)
        return [Candidate(*found) for found in zip(ranked.ids[0][:top_k], ranked.scores[0], strict=False)]

    def features(self, paths: list[str]) -> dict[str, tuple[Any, Any]]:
        """The store of `Reranker.rerank_ids`."""
        if new := [path for path in paths if path not in self._features]:
            self._features |= zip(new, zip(*self._reranker.embed(new), strict=True), strict=True)
        return self._features
