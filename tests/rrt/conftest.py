"""A tiny network, as a library user has it."""

from typing import Any

import pytest

from models.network import RerankingNetwork
from models.settings import ANSWER_SETTINGS, NetworkSettings
from rrt import Reranker
from rrt.pretrained import DEFAULTS
from tests.conftest import TINY
from tests.reference import drawn
from utils.io.checkpoint import TrainingInfo, save_tensors

TINY_MODEL: dict[str, Any] = TINY["model"]  # type: ignore[assignment]
SETTINGS = {**DEFAULTS, **{name: value for name, value in TINY_MODEL.items() if name in ANSWER_SETTINGS}}
CROP_SIZE = 64


@pytest.fixture(scope="session")
def content() -> dict:
    """What a checkpoint of the tiny network holds."""
    network = RerankingNetwork(6, NetworkSettings(pretrained=False, normalize=True, **SETTINGS))
    state = {name: drawn(name, tensor) for name, tensor in network.state_dict().items()}
    return {"state": state, "origin": TrainingInfo(SETTINGS, True, CROP_SIZE)._asdict()}


@pytest.fixture(scope="session")
def saved(content, tmp_path_factory):
    """Its checkpoint."""
    path = tmp_path_factory.mktemp("library") / "tiny.pt"
    save_tensors(path, content)
    return path


@pytest.fixture(scope="session")
def reranker(saved) -> Reranker:
    return Reranker.from_pretrained(saved, device="cpu")


@pytest.fixture
def paths(photos):
    """Seven photos."""
    return sorted(photos.glob("toy_final/*.JPG"))[:7]
