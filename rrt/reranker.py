"""`Reranker`: a trained network that embeds images, scores pairs of them and ranks candidates."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, Unpack

import numpy as np
import torch
from torch import Tensor

from models.network import RerankingNetwork
from models.settings import without_later
from rrt.arguments import FITTED, TOP_K, Fusion, Options, Positions, checked_options, positions_of, weights_of
from rrt.card import card_of
from rrt.embedder import Images, PhotoEmbedder
from rrt.features import Features
from rrt.heads import SHIPPED
from rrt.pretrained import CROP_SIZE, Pretrained, load, load_backbone, save
from utils.errors import InputError
from utils.io.hub import upload
from utils.retrieval.chamfer import Chamfer
from utils.retrieval.crossfit import FIXED_WEIGHTS
from utils.retrieval.fitted import FittedWeights
from utils.retrieval.pair_scoring import Scorer, pair_scores
from utils.retrieval.ranking import Candidates, Ranking, Weights, candidate_cosines, ranking_by
from utils.runtime.precision import dtype_of, float32_throughout
from utils.settings import check_settings, plain

UNTRAINED = FIXED_WEIGHTS[False]  # of a network without a trained matcher


class Match(NamedTuple):
    """A candidate: its position among the candidates, the score that ranks it, and two scores of the pair."""

    index: int  # type: ignore[assignment]  # the name of a tuple's method
    score: float
    logit: float | None  # of the matcher; None where the ranking does without it
    cosine: float  # of the global descriptors
    probability: float | None = None  # that both show one product; None where the score is not calibrated


class Reranker(PhotoEmbedder):
    """A trained network in eval mode. Several threads may use one: their computations run one after another.

    It prints nothing and writes no files, but for `save_pretrained`, `push_to_hub` and the downloads of
    `from_pretrained`, which show their progress. It computes in float32 without TF32: torch's settings are changed for
    each computation, and restored after it. Every computation takes `progress=True`, which shows a bar, `batch_size`,
    images or pairs computed at a time, and `precision`, 'fp32', 'tf32', 'bf16' or 'fp16': of products and convolutions.

    Images are paths, PIL images, or arrays and tensors, of uint8 or of floats from 0 to 1: (3, h, w), grey ones
    (1, h, w) or of uint8 (h, w), arrays also (h, w, 3). Images of any size are resized and cropped as in the
    evaluation. `Features`, which `embed` returns, are taken in place of images everywhere.

    A pair's score is a weighted sum of the matcher's logit, the cosine of the global descriptors and the Chamfer
    similarity of the local maps. By default the weights are `fitted`, those that the training has fitted on validation
    classes and kept with the network. A network without any is ranked by the logit, and one whose matcher was never
    trained by `UNTRAINED`. `fusion='logit'` (or None) ranks by the logit, `fusion=(w, v)` by
    `logit + w * cosine + v * chamfer`.

    Invalid arguments raise InputError, a ValueError.
    """

    def __init__(
        self,
        network: RerankingNetwork,
        settings: Mapping[str, Any],
        crop_size: int = CROP_SIZE,
        fusion: FittedWeights | None = None,
        matcher_trained: bool = True,
        device: torch.device | str | None = None,
    ):
        """`settings` are those of `network`; `crop_size` is the side of its input in pixels; `fusion` are the weights
        of its ranking. Without a trained matcher the logit ranks nothing.

        `device` None: CUDA where available, else the CPU. 'mps' computes in 'fp32' alone.
        """
        super().__init__(network, crop_size, device)
        self.settings, self.fusion, self.matcher_trained = dict(settings), fusion, matcher_trained

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        crop_size: int | None = None,
        device: torch.device | str | None = None,
        **settings,
    ) -> "Reranker":
        """The network of `source`: a checkpoint of this project or a published one, a folder of `save_pretrained`, a
        repository of the hub with the same two files, or 'published', which fetches the published checkpoint.

        `settings` such as arch='resnet18' are needed for a checkpoint that does not have its own. `crop_size` None: as
        in the training, or 224 where that is unknown.
        InputError where the source is missing or damaged, or where settings do not fit it.
        """
        return cls(*load(source, crop_size, settings), device=device)

    @classmethod
    def from_backbone(
        cls,
        arch: str,
        weights: str | Path | None = None,
        crop_size: int | None = None,
        device: torch.device | str | None = None,
        head: str | Path | None = SHIPPED,
    ) -> "Reranker":
        """A backbone of torchvision's or timm's with its published weights, or those of a file, without a matcher.

        Its own channels are descriptors and local maps, and `UNTRAINED` the ranking: the Chamfer similarity and half
        the cosine. A trained `head` projects the local maps, and has fitted weights: 'shipped', the one that comes
        along for the published weights of tf_efficientnet_lite0; that of a file; or None.

        `crop_size` None: 224, or where the backbone does not take that, the nearest that it does. InputError for an
        unknown name, where weights cannot be had, and for a file that is no head of this backbone.
        """
        return cls(*load_backbone(arch, True if weights is None else str(weights), crop_size, head), device=device)

    @property
    def own_weights(self) -> Weights | None:
        """The weights that rank by default; None: the logit alone."""
        if self.fusion is not None:
            return self.fusion.weights
        return None if self.matcher_trained else UNTRAINED

    def fusion_of(self, weights: Weights) -> FittedWeights | None:
        """What is known of weights, where they are those fitted for the network."""
        return self.fusion if self.fusion is not None and weights[:3] == self.fusion.weights[:3] else None

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json`, `model.safetensors` and, where no other README is, a model card into a folder."""
        self._save(Path(folder), "FOLDER")

    def push_to_hub(
        self, repo_id: str, private: bool | None = None, token: str | None = None, revision: str | None = None
    ) -> str:
        """Upload what `save_pretrained` writes to a repository of the hub, 'OWNER/NAME', or its branch `revision`. Both
        are made where there are none. Returns the commit's address; InputError where the hub refuses or is away."""
        with TemporaryDirectory() as folder:
            self._save(Path(folder), repo_id)
            return upload(Path(folder), repo_id, private, token, revision)

    def _save(self, folder: Path, source: str) -> None:
        pretrained = Pretrained(self.network, self.settings, self.crop_size, self.fusion, self.matcher_trained)
        save(folder, pretrained, card_of(pretrained, str(self.own_weights or "logit"), source))

    def __repr__(self) -> str:
        ranking = str(self.own_weights or "logit") + (f", fitted on {self.fusion.fitted_on}" if self.fusion else "")
        return f"Reranker({self.settings['arch']}, {self.crop_size} pixels, {self.device}; ranks by {ranking})"

    def digest(self) -> str:
        """The SHA-256 sum, in hexadecimal, of the settings and weights on which results depend."""
        settings = sorted(without_later(self.settings).items())
        content = hashlib.sha256(repr((settings, self.crop_size)).encode())
        for part in self.network.backbone.fingerprint():
            content.update(part)
        for name, tensor in self.network.state_dict().items():
            if not name.startswith("classifier."):
                content.update(name.encode())
                content.update(tensor.cpu().contiguous().numpy().tobytes())
        return content.hexdigest()

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
        weights = self._weights(fusion, len(gallery))
        scored = self._scored(queries, gallery, torch.from_numpy(np.arange(len(gallery))[None]), weights, **options)
        (scores,), (positions,) = ranking_by(scored, weights)
        calibration = getattr(self.fusion_of(weights), "calibration", None)
        return [
            Match(
                index,
                score,
                None if scored.logits is None else float(scored.logits[0, index]),
                float(scored.cosines[0, index]),
                None if calibration is None else float(calibration.probability(np.array(score))),
            )
            for index, score in zip(positions[:top_k].tolist(), scores[:top_k].tolist(), strict=True)
        ]

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
        weights, is_padding = self._weights(fusion, positions.shape[1]), positions < 0
        if is_padding.all():
            return Ranking(np.full(positions.shape, -np.inf, np.float32), positions.numpy())
        rows, row_positions = positions.where(~is_padding, positions.max()).unique(return_inverse=True)
        candidates = self._checked(gallery, rows)  # a gallery may be large, and in a file
        scored = self._scored(queries, candidates, row_positions, weights, **options)
        for scores in scored[1:]:
            if scores is not None:
                scores[is_padding.numpy()] = -np.inf
        ranking = ranking_by(scored, weights)
        return ranking._replace(positions=np.where(np.isneginf(ranking.scores), -1, rows.numpy()[ranking.positions]))

    def _weights(self, fusion: Fusion, num_candidates: int) -> Weights:
        """The weights of a `fusion`; InputError where they need a matcher that was never trained."""
        weights = weights_of(fusion, num_candidates, self.own_weights)
        if weights.logit and not self.matcher_trained:
            raise InputError(f"fusion={fusion!r}: the matcher was never trained, leave fusion out")
        return weights

    def _scored(
        self, queries: Features, gallery: Features, positions: Tensor, weights: Weights, **options: Unpack[Options]
    ) -> Candidates:
        """The scores that have a weight; the others are 0, without logits None."""
        progress, batch_size, precision = checked_options(**options)
        dtype, matcher = dtype_of(precision, self.device), self.network.matcher
        with float32_throughout(tf32=precision == "tf32"):
            scorers: list[Scorer] = []
            if weights.logit:
                scorers.append(matcher if dtype == torch.float32 else matcher.computing_in(dtype))
            if weights.chamfer:
                scorers.append(Chamfer())
            maps = queries.maps, gallery.maps
            scores = iter(pair_scores(self.network, *maps, positions, scorers, progress, batch_size) if scorers else ())
            logits = next(scores).numpy() if weights.logit else None
            cosines = candidate_cosines(queries.descriptors, gallery.descriptors, positions)
            chamfer = next(scores).numpy() if weights.chamfer else np.zeros_like(cosines)
        return Candidates(positions.numpy(), cosines, chamfer, logits)
