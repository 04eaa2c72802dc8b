"""Candidates to rankings: the half of `Reranker` that scores pairs."""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple, Unpack

import numpy as np
import torch
from torch import Tensor

from models.network import RerankingNetwork
from rrt.arguments import FITTED, TOP_K, Fusion, Options, Positions, checked_options, positions_of, weights_of
from rrt.embedder import Images, PhotoEmbedder
from rrt.features import Features
from rrt.images import Photo, pixels_of
from rrt.patches import PatchPair, patch_boxes, patch_pairs
from rrt.stores import RankedIds, Store, by_ids, gather, rows_of
from utils.errors import InputError
from utils.retrieval.chamfer import Chamfer
from utils.retrieval.crossfit import FIXED_WEIGHTS
from utils.retrieval.fitted import FittedWeights
from utils.retrieval.pair_scoring import Scorer, pair_scores
from utils.retrieval.ranking import Candidates, Ranking, Weights, candidate_cosines, in_margin, ranking_by
from utils.runtime.precision import dtype_of, float32_throughout
from utils.settings import check_settings, plain

UNTRAINED = FIXED_WEIGHTS[False]  # of a network without a trained matcher


class Match(NamedTuple):
    """A candidate: its position among the candidates, the score that ranks it, and two scores of the pair."""

    index: int  # type: ignore[assignment]  # the name of a tuple's method
    score: float
    logit: float | None  # of the matcher; None where the ranking, or its cascade, does without it
    cosine: float  # of the global descriptors
    # that both show one product; None where the score is not calibrated, or has no logit
    probability: float | None = None


class Ranker(PhotoEmbedder):
    """A network that ranks by `fusion`, the weights that were fitted for it, or by the logit or `UNTRAINED`."""

    def __init__(
        self,
        network: RerankingNetwork,
        crop_size: int,
        fusion: FittedWeights | None,
        matcher_trained: bool,
        device: torch.device | str | None,
    ):
        super().__init__(network, crop_size, device)
        self.fusion, self.matcher_trained = fusion, matcher_trained

    @property
    def own_weights(self) -> Weights | None:
        """The weights that rank by default; None: the logit alone."""
        if self.fusion is not None:
            return self.fusion.weights
        return None if self.matcher_trained else UNTRAINED

    def weights(self, fusion: Fusion, num_candidates: int) -> Weights:
        """The weights of a `fusion`; InputError where they need a matcher that was never trained."""
        weights = weights_of(fusion, num_candidates, self.own_weights, self.fusion and self.fusion.cascade)
        if weights.logit and not self.matcher_trained:
            raise InputError(f"fusion={fusion!r}: the matcher was never trained, leave fusion out")
        return weights

    def fusion_of(self, weights: Weights) -> FittedWeights | None:
        """What is known of weights, where they are those fitted for the network."""
        return self.fusion if self.fusion is not None and weights[:3] == self.fusion.weights[:3] else None

    def score(self, a: Images, b: Images, fusion: Fusion = FITTED, **options: Unpack[Options]) -> Tensor:
        """Scores float32 (n,) of n pairs, each of a query of `a` and the candidate of `b` at the same position."""
        queries, candidates = self._checked(a, **options), self._checked(b, **options)
        if len(queries) != len(candidates):
            raise InputError(f"{len(queries)} and {len(candidates)} images are no pairs: give as many of each")
        ranking = self.rerank(queries, candidates, np.arange(len(queries))[:, None], fusion, **options)
        return torch.from_numpy(ranking.scores[:, 0])

    def rank(
        self,
        query: Images,
        candidates: Images,
        top_k: int | None = None,
        fusion: Fusion = FITTED,
        **options: Unpack[Options],
    ) -> list[Match]:
        """The `top_k` best candidates of one query, or all, best first."""
        queries, gallery = self._checked(query, **options), self._checked(candidates, **options)
        if len(queries) != 1:
            raise InputError(f"{len(queries)} queries: rank takes one, rerank any number")
        check_settings({"top_k": plain(top_k)}, {"top_k": TOP_K})
        if not len(gallery):
            return []
        weights = self.weights(fusion, len(gallery))
        scored = self._scored(queries, gallery, torch.from_numpy(np.arange(len(gallery))[None]), weights, **options)
        (scores,), (positions,) = ranking_by(scored, weights)
        calibration = getattr(self.fusion_of(weights), "calibration", None)
        matches = []
        for index, score in zip(positions[:top_k].tolist(), scores[:top_k].tolist(), strict=True):
            logit = None if scored.logits is None else float(scored.logits[0, index])
            is_left_out = logit is not None and math.isnan(logit)  # by the cascade
            probability = None
            if calibration is not None and not is_left_out:
                probability = float(calibration.probability(np.array(score)))
            cosine = float(scored.cosines[0, index])
            matches.append(Match(index, score, None if is_left_out else logit, cosine, probability))
        return matches

    def rerank(
        self,
        queries: Images,
        gallery: Images,
        neighbours: Positions,
        fusion: Fusion = FITTED,
        **options: Unpack[Options],
    ) -> Ranking:
        """Search results in a new order: `scores` float32 (n, k), descending, and gallery `positions` (n, k).

        `neighbours` (n, k), or (k,) for one query, holds each query's candidates of any search, as positions in the
        gallery. -1 is padding, as faiss pads shorter rows: it comes last, with a score of -inf. Equal scores keep their
        order. InputError for features of another network, and for positions outside the gallery.
        """
        queries, gallery = self._checked(queries, **options), self._as_features(gallery, **options)
        positions = positions_of(neighbours, len(queries), len(gallery))
        weights, is_padding = self.weights(fusion, positions.shape[1]), positions < 0
        if is_padding.all():
            return Ranking(np.full(positions.shape, -np.inf, np.float32), positions.numpy())
        rows, row_positions = positions.where(~is_padding, positions.max()).unique(return_inverse=True)
        candidates = self._checked(gallery, rows)  # a gallery may be large, and in a file
        scored = self._scored(queries, candidates, row_positions, weights, is_padding, **options)
        ranking = ranking_by(scored, weights)
        return ranking._replace(positions=np.where(np.isneginf(ranking.scores), -1, rows.numpy()[ranking.positions]))

    def rerank_ids(
        self,
        queries: Images,
        ids: Iterable[Iterable[Any]],
        store: Store,
        fusion: Fusion = FITTED,
        **options: Unpack[Options],
    ) -> RankedIds:
        """The candidates of any search engine in a new order, by its own ids; scores are those of `rerank`.

        `ids` are a list for each query, of any lengths. None and -1 in it are padding. `store` has the candidates'
        features. Padding, and ids that the store does not have, come last in their order, with a score of -inf.
        InputError, with the id, for features that do not fit.
        """
        queries = self._checked(queries, **options)
        rows = rows_of(ids, len(queries))
        known, gallery = gather(store, rows)
        position = {id: i for i, id in enumerate(known)}
        neighbours = np.full((len(rows), max(map(len, rows), default=0)), -1)
        for of_query, row in zip(neighbours, rows, strict=True):
            of_query[: len(row)] = [position.get(id, -1) for id in row]
        return by_ids(self.rerank(queries, gallery or self._nothing(), neighbours, fusion, **options), rows, known)

    def patches(self, query: Photo, candidate: Photo) -> list[PatchPair]:
        """Which patches of two images match: the pairs that make their Chamfer similarity, the strongest first.

        `rank` does without: it has no photos, whose sizes the boxes need, where features are given.
        """
        photos = query, candidate
        maps = self.embed(photos).maps[:, None]
        sizes = (pixels_of(photo, lambda opened: opened.size) for photo in photos)
        boxes = (patch_boxes(size, maps.shape[-2:], self.crop_size, self.resizing) for size in sizes)
        with float32_throughout():
            return patch_pairs(*maps, *boxes)

    def _scored(
        self,
        queries: Features,
        gallery: Features,
        positions: Tensor,
        weights: Weights,
        is_padding: Tensor | None = None,
        **options: Unpack[Options],
    ) -> Candidates:
        """The scores that have a weight; the others are 0, without logits None. Those of padding are -inf, and logits
        that a cascade leaves out NaN."""
        progress, batch_size, precision = checked_options(**options)
        dtype, matcher = dtype_of(precision, self.device), self.network.matcher
        padding = np.zeros(positions.shape, bool) if is_padding is None else is_padding.numpy()
        is_cascade = bool(weights.logit) and math.isfinite(weights.margin)
        scorers: list[Scorer] = [Chamfer()] if weights.chamfer else []
        matchers: list[Scorer] = [matcher if dtype == torch.float32 else matcher.computing_in(dtype)]

        def scores_by(scorers: list[Scorer], among: Tensor | None = None) -> list[np.ndarray]:
            maps = queries.maps, gallery.maps
            scores = pair_scores(self.network, *maps, positions, scorers, progress, batch_size, among)
            return [of_scorer.numpy() for of_scorer in scores]

        cosines = candidate_cosines(queries.descriptors, gallery.descriptors, positions)
        with float32_throughout(tf32=precision == "tf32"):
            at_once = scorers + matchers if weights.logit and not is_cascade else scorers
            scores = scores_by(at_once) if at_once else []
            chamfer = scores.pop(0) if scorers else np.zeros_like(cosines)
            for part in (cosines, chamfer, *scores):
                part[padding] = -np.inf
            candidates = Candidates(positions.numpy(), cosines, chamfer, scores[0] if scores else None)
            if is_cascade:
                (logits,) = scores_by(matchers, torch.from_numpy(in_margin(candidates, weights) & ~padding))
                logits[padding] = -np.inf
                candidates = candidates._replace(logits=logits)
        return candidates
