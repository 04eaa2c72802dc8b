"""Trained heads of pretrained backbones: the projection to local maps, and the weights that rank by them.

A head is a safetensors file of the tensors of `head_modules`. Its metadata are JSON: `arch`, the backbone's name;
`backbone`, the `digest` of its weights; and `fusion`, a record of fitted weights. tools/make_head.py makes one.
"""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import safetensors
import safetensors.torch
from torch import Tensor, nn

from models.network import RerankingNetwork
from utils.errors import InputError
from utils.io.atomic import atomic_write
from utils.io.checkpoint import load_finite
from utils.retrieval.fitted import FittedWeights
from utils.training.losses import rerank_criterion

SHIPPED = "shipped"
DATA = Path(__file__).parent / "data"
FILES = {"tf_efficientnet_lite0": DATA / "lite0_head.safetensors"}  # of backbones


class Head(NamedTuple):
    """A trained head."""

    path: Path
    arch: str
    backbone: str  # `digest` of its weights
    fusion: FittedWeights
    tensors: dict[str, Tensor]

    @property
    def num_local_features(self) -> int:
        return len(self.tensors["remap_local.weight"])

    def fits(self, backbone: nn.Module) -> bool:
        """Whether it was trained on maps of this backbone."""
        return self.backbone == digest(backbone)


def head_modules(network: RerankingNetwork) -> nn.ModuleDict:
    """What a head has the tensors of: the network's `remap_local`, and the criterion that it is trained by."""
    return nn.ModuleDict({"remap_local": network.remap_local, **rerank_criterion("chamfer")})


def digest(backbone: nn.Module) -> str:
    """The SHA-256 sum, in hexadecimal, of a backbone's weights."""
    content = hashlib.sha256()
    for name, tensor in backbone.state_dict().items():
        if tensor.is_floating_point():
            content.update(f"{name} {tuple(tensor.shape)}".encode())
            content.update(tensor.cpu().contiguous().numpy().tobytes())
    return content.hexdigest()


def head_of(arch: str, head: str | Path | None) -> Head | None:
    """The head of `Reranker.from_backbone`: that of a file, or the shipped one, if there is one for the backbone."""
    path = FILES.get(arch.partition(".")[0]) if head == SHIPPED else head
    return None if path is None else read_head(Path(path))


def read_head(path: Path) -> Head:
    """The head in a file; InputError for anything else."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            record = json.loads(file.metadata()["head"])
            tensors = {name: file.get_tensor(name) for name in ("remap_local.weight", *file.keys())}
        fusion = FittedWeights.from_dict(record["fusion"])
        return Head(path, str(record["arch"]), str(record["backbone"]), fusion, tensors)
    except Exception as error:  # safetensors raises types of its own
        raise InputError(f"{path} is no head as tools/make_head.py writes it: {error}") from error


def write_head(head: Head) -> None:
    """Write a head to its path, whole or not at all."""
    record = {"arch": head.arch, "backbone": head.backbone, "fusion": head.fusion.to_dict()}
    with atomic_write(head.path) as file:
        file.write(safetensors.torch.save(head.tensors, {"head": json.dumps(record)}))


def take_head(network: RerankingNetwork, head: Head) -> None:
    """Give a network the head's projection; InputError where the head is of another backbone, of another shape, or has
    numbers that are not finite."""
    if not head.fits(network.backbone):
        raise InputError(f"{head.path} was trained on other weights of {head.arch}: give another, or head=None")
    load_finite(head_modules(network), head.tensors, head.path)
