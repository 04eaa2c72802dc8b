"""Trained heads of pretrained backbones: the projection to local maps, and the weights that rank by them.

A head is a safetensors file: `remap_local.weight` and `remap_local.bias`; and as metadata in JSON `arch`, the backbone,
the `crop_size`, `fusion`, a record of fitted weights, and `trained_on`, a sentence on photos and licences.
`python -m tools.make_head CHECKPOINT FILE` writes one.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
from torch import Tensor

from utils.errors import InputError
from utils.io.atomic import atomic_write
from utils.retrieval.fitted import FittedWeights

SHIPPED = Path(__file__).parent / "data"


class Head(NamedTuple):
    """A trained head."""

    arch: str
    crop_size: int
    tensors: dict[str, Tensor]  # of `remap_local`
    fusion: FittedWeights
    trained_on: str


def shipped_head(arch: str) -> Head | None:
    """The head that comes with the library for a backbone, if there is one."""
    path = SHIPPED / f"{arch.partition('.')[0]}_head.safetensors"
    return read_head(path) if path.exists() else None


def read_head(path: Path | str) -> Head:
    """The head in a file; InputError for anything else."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = json.loads((file.metadata() or {})["head"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        fusion = FittedWeights.from_dict(metadata["fusion"])
        return Head(str(metadata["arch"]), int(metadata["crop_size"]), tensors, fusion, str(metadata["trained_on"]))
    except Exception as error:  # safetensors raises types of its own
        raise InputError(f"{path} is no head: {error}") from error


def write_head(path: Path, head: Head) -> None:
    """Write a head, whole or not at all."""
    metadata: dict[str, Any] = head._asdict() | {"fusion": head.fusion.to_dict()}
    del metadata["tensors"]
    with atomic_write(path) as file:
        file.write(safetensors.torch.save(head.tensors, {"head": json.dumps(metadata)}))
