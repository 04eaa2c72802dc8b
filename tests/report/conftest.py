"""An evaluation of photos with hostile names, two trainings beside it, and a browser."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import eval_rerank
from tests.conftest import TINY, draw_photo
from tests.narrow import narrow
from tests.utils.logs.folders import training_run
from utils import pickle_save
from utils.experiment.run_folder import RunFolder

HOSTILE = "<script>alert(1)</script>'\"&\u2028ü漢"
CLASSES, PHOTOS = range(5), 4


@pytest.fixture(scope="package", autouse=True)
def narrow_network() -> Iterator[None]:
    with narrow():
        yield


@pytest.fixture(scope="package")
def made(tmp_path_factory, checkpoint) -> SimpleNamespace:
    """Folders `data` and `evaluated`, both temp_dir and run folder of an evaluation, made once; see `evaluation`."""
    root = tmp_path_factory.mktemp("report")
    data, folder = root / "data", root / "eval"
    names = [f"{HOSTILE}/{number}_{i}.JPG" for number in CLASSES for i in range(PHOTOS)]
    lines = [f"{name},{i // PHOTOS}" for i, name in enumerate(names)]
    for i, name in enumerate(names):
        draw_photo(data / name, i // PHOTOS, i)
    for split in ("train", "test"):
        (data / f"{split}.txt").write_text("\n".join(lines), encoding="utf-8")
    n = len(names)
    pickle_save(root / "nn_inds.pkl", np.array([[j for j in range(n) if j != i] for i in range(n)]))
    run = evaluate(folder, root / "nn_inds.pkl", checkpoint, {"data_path": str(data)})
    return SimpleNamespace(root=root, data=data, folder=folder, run=run)


def evaluate(folder: Path, neighbours: Path, checkpoint: str, dataset: dict, **changes) -> Path:
    """The run folder of an evaluation, which is in its temp_dir `folder`."""
    settings = {"resume": checkpoint, "cache_nn_inds": str(neighbours), "temp_dir": str(folder)} | changes
    eval_rerank.ex.observers[:] = [RunFolder(folder)]
    eval_rerank.ex.run(config_updates=TINY | settings | {"dataset": TINY["dataset"] | dataset})  # type: ignore[operator]
    eval_rerank.ex.observers.clear()
    return folder / "1"


@pytest.fixture
def evaluation(made, tmp_path) -> SimpleNamespace:
    """The evaluation to be changed: its folder is a copy, in which the report looks when it finds no temp_dir."""
    shutil.copytree(made.folder, tmp_path / "eval")
    config = tmp_path / "eval" / "1" / "config.json"
    config.write_text(config.read_text().replace(str(made.folder), str(tmp_path / "eval")))
    return SimpleNamespace(data=made.data, folder=tmp_path / "eval", run=tmp_path / "eval" / "1")


@pytest.fixture(scope="package")
def trainings(tmp_path_factory) -> Path:
    """A folder with trainings of two seeds."""
    folder = tmp_path_factory.mktemp("trainings")
    for seed in (1, 2):
        training_run(folder / str(seed), seed=seed, best=80.0 + seed)
    return folder


@pytest.fixture(scope="package")
def browser() -> Iterator:
    """Chromium without a window, its console logged."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("needs a browser: apt-get install chromium chromium-driver")
    from selenium import webdriver
    from selenium.common.exceptions import WebDriverException

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):  # root has no sandbox
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    try:
        browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    except WebDriverException as error:
        pytest.skip(f"the browser does not start: {error.msg}")
    yield browser
    browser.quit()
