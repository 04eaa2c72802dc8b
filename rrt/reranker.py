"""`Reranker`: a trained network that embeds images, scores pairs of them and ranks candidates."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from models.network import RerankingNetwork
from models.settings import without_later
from rrt.card import card_of
from rrt.heads import SHIPPED
from rrt.pretrained import CROP_SIZE, Pretrained, load, load_backbone, save
from rrt.ranker import Ranker
from utils.io.hub import upload
from utils.retrieval.fitted import FittedWeights


class Reranker(Ranker):
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
        super().__init__(network, crop_size, fusion, matcher_trained, device)
        self.settings = dict(settings)

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
