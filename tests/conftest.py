"""A tiny dataset in SOP's layout, Sacred runs in process, and the devices that tests run on."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.backends import cudnn

from models.ingredient import get_model
from tests.narrow import narrow
from tests.reference import META
from utils import pickle_save
from utils.experiment.run_folder import RunFolder
from utils.runtime.memory import keep_freed_memory
from utils.runtime.precision import set_precision

keep_freed_memory()  # as the commands do

CUDA = pytest.param(
    torch.device("cuda", 0),
    marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
)

TINY = {  # settings under which a step takes milliseconds
    "cpu": True,
    "dataset": {"num_workers": 0, "crop_size": 64, "test_batch_size": 8, "recalls": [1, 10]},
    "model": {
        "arch": "resnet18",
        "pretrained": False,
        "num_global_features": 16,
        "num_local_features": 16,
        "ert_dim_feedforward": 32,
        "ert_num_encoder_layers": 2,
    },
}


def draw_photo(path: Path, class_number: int, seed: int) -> None:
    """A photo of a class: a noisy field of its colour."""
    rng = np.random.default_rng((class_number, seed))
    colour = np.random.default_rng(class_number).integers(0, 256, 3)
    field = np.clip(colour + rng.normal(0, 40, (60, 72, 3)), 0, 255).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(field).save(path, "JPEG")


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    """A prepared dataset folder: 6 training classes of 4 photos, 5 test classes of 4, the last with identical twins."""
    folder = tmp_path_factory.mktemp("photos") / "sop"
    for name, classes in (("train", range(6)), ("test", range(6, 11))):
        lines = []
        for number in classes:
            for i in range(4):
                path = f"toy_final/{number}_{i}.JPG"
                draw_photo(folder / path, number, 0 if number == 10 else i)
                lines.append(f"{path},{number}")
        (folder / f"{name}.txt").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="session")
def neighbours(photos, tmp_path_factory):
    """Neighbour files of training and test images: all the others, in order."""
    folder = tmp_path_factory.mktemp("neighbours")
    for name, n in (("train", 24), ("test", 20)):
        pickle_save(folder / f"{name}.pkl", np.array([[j for j in range(n) if j != i] for i in range(n)]))
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A model as it is before training, for 6 classes."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("checkpoint") / "initial.pt"
    with narrow():
        model = get_model(6, **{**META["default"], **TINY["model"]})
    torch.save(model.state_dict(), path)
    return str(path)


@pytest.fixture
def tiny(photos):
    """Config updates for a tiny run on the photos, with nested changes merged in; its network is narrow."""

    def merge(**changes):
        merged = json.loads(json.dumps(TINY | {"dataset": TINY["dataset"] | {"data_path": str(photos)}}))
        for key, value in changes.items():
            merged[key] = (
                merged[key] | value if isinstance(value, dict) else str(value) if key.endswith("_dir") else value
            )
        return merged

    with narrow():
        yield merge


@pytest.fixture
def observed(tmp_path):
    """Run an experiment in process under a file observer; its result, info and folder."""

    def run(ex, command=None, named_configs=(), **config):
        folder = tmp_path / f"sacred{len(list(tmp_path.glob('sacred*')))}"
        ex.observers[:] = [RunFolder(folder)]
        try:
            result = ex.run(command, config_updates=config, named_configs=named_configs).result
        finally:
            ex.observers.clear()
        texts = {name: (folder / "1" / f"{name}.json").read_text() for name in ("info", "metrics", "run")}
        return SimpleNamespace(
            result=result,
            folder=folder / "1",
            printed=(folder / "1" / "cout.txt").read_text(),
            **{name: json.loads(text) for name, text in texts.items()},
        )

    return run


@pytest.fixture(params=[torch.device("cpu"), CUDA], ids=["cpu", "cuda"])
def device(request) -> torch.device:
    return request.param


@pytest.fixture(autouse=True)
def without_waiting_for_the_disk():
    """No test cuts the power; of hundreds of checkpoints each wait takes a second.

    It asks for no `monkeypatch`, which would be undone after the test's folder is deleted.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(autouse=True)
def without_waiting_for_workers():
    """torch waits 5 s for the workers of a loader that an error has left to the garbage collector: they hear no end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 1.0)
        yield


@pytest.fixture(autouse=True)
def seeded_and_in_float32():
    """Each test draws from one seed, and computes without TF32, and cuDNN's attention, unless it asks for it."""
    torch.manual_seed(0)
    torch.backends.cuda.enable_cudnn_sdp(False)
    set_precision("fp32", torch.device("cpu"))
    cudnn.benchmark = cudnn.deterministic = False
    torch.use_deterministic_algorithms(False)
