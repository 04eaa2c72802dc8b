"""What the published implementation answers for fixed weights and inputs, both drawn from names; nothing is learned."""

import json
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.ingredient import get_model

ANSWERS = np.load(Path(__file__).parent / "data" / "published.npz")
META = json.loads(ANSWERS["meta"].tobytes())


def stream(name: str) -> np.random.Generator:
    """Random numbers that belong to a name."""
    return np.random.Generator(np.random.PCG64(zlib.crc32(f"{META['salt']}:{name}".encode())))


def normal(name: str, *shape: int) -> Tensor:
    return torch.from_numpy(stream(name).standard_normal(shape).astype(np.float32))


def pixels(name: str, *shape: int) -> Tensor:
    return torch.from_numpy(stream(name).uniform(0, 1, shape).astype(np.float32))


def integers(name: str, high: int, *shape: int) -> Tensor:
    return torch.from_numpy(stream(name).integers(0, high, shape))


def drawn(name: str, old: Tensor) -> Tensor:
    """A weight or running statistic, scaled so that activations stay of order one."""
    if name in ("mean", "std") or not old.is_floating_point():
        return old
    return weight(name, tuple(old.shape)).clone()


@cache
def weight(name: str, shape: tuple[int, ...]) -> Tensor:
    rng = stream(name)
    if len(shape) > 1:
        values = rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
    elif name.endswith("running_var"):
        values = rng.uniform(0.5, 1.5, shape)
    elif name.endswith(("running_mean", "bias")):
        values = 0.05 * rng.standard_normal(shape)
    else:
        values = rng.uniform(*((0.2, 0.5) if ".bn3." in name else (0.8, 1.6)), shape)
    return torch.from_numpy(values.astype(np.float32))


def published_model(num_classes: int, **changes):
    """The network of the published checkpoints, or a variant of it, with weights drawn from their names."""
    model = get_model(num_classes, **{**META["default"], **changes})
    model.load_state_dict({name: drawn(name, old) for name, old in model.state_dict().items()})
    return model


def assert_answer(got, name: str, tolerance: float = 2e-5) -> None:
    """`got` equals the published answer within `tolerance` of its largest value."""
    want = ANSWERS[name]
    np.testing.assert_allclose(np.asarray(got), want, rtol=0, atol=tolerance * np.abs(want).max())
