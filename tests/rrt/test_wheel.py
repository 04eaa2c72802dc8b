"""What `pip install .` brings, used in a folder that has modules of the clone's names."""

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import Distribution

import numpy as np
import pytest

from rrt import __version__
from tests import ROOT

PIP = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check")
OFFLINE = ("--no-deps", "--no-build-isolation", "--no-index")
USE = """
import runpy, sys
import utils, models
from rrt import Reranker
model, *photos = sys.argv[1:]
matches = Reranker.from_pretrained(model, device="cpu").rank(photos[0], photos[1:])
print([match.logit for match in sorted(matches)])
sys.argv = ["rrt", "search", "nowhere", photos[0]]
try:
    runpy.run_module("rrt", run_name="__main__")
except SystemExit as ended:
    assert ended.code == 1
assert utils.MINE and models.MINE and not {"sacred", "faiss", "matplotlib", "requests", "sop"} & sys.modules.keys()
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """What the wheel is made from."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("rrt", "models", "utils", "sop"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


def test_the_wheel_stands_alone(source, saved, reranker, paths, tmp_path):
    installed, own = tmp_path / "installed", tmp_path / "own"
    subprocess.run([sys.executable, *PIP, *OFFLINE, "--target", installed, source], check=True)
    names = {path.name for path in installed.iterdir() if path.suffix != ".dist-info"}
    assert names == {"bin", "rrt"}
    assert all((installed / "rrt" / name).exists() for name in ("py.typed", "engines/faiss.py"))
    assert {path.name for path in (installed / "rrt" / "data").iterdir()} == {"README.md", "lite0_head.safetensors"}
    check_metadata(Distribution.at(next(installed.glob("*.dist-info"))))

    (own / "models").mkdir(parents=True)
    for file in (own / "utils.py", own / "models" / "__init__.py"):
        file.write_text("MINE = True")
    command = [sys.executable, "-W", "error", "-c", USE, saved, *paths]
    environment = os.environ | {"PYTHONPATH": str(installed)}
    found = subprocess.run(command, cwd=own, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert found.stderr == "nowhere is no index: `python -m rrt index PHOTOS... --to nowhere` makes one\n"
    expected = [match.logit for match in sorted(reranker.rank(paths[0], paths[1:]))]
    np.testing.assert_allclose(json.loads(found.stdout), expected, rtol=0, atol=1e-5)


def check_metadata(installed: Distribution) -> None:
    assert installed.version == __version__
    assert [(script.name, script.value) for script in installed.entry_points] == [("rrt", "rrt.__main__:main")]
    assert installed.metadata["Author"] == "the rrt authors"
    assert {"timm", "search"} <= set(installed.metadata.get_all("Provides-Extra") or [])


def test_an_editable_installation_is_the_clone(source, tmp_path):
    subprocess.run([sys.executable, *PIP, *OFFLINE, "--target", tmp_path, "--editable", source], check=True)
    (paths,) = tmp_path.glob("*.pth")
    assert paths.read_text().strip() == str(source)
    check_metadata(Distribution.at(next(tmp_path.glob("*.dist-info"))))


def test_the_changelog_tells_of_this_version():
    newest, *_ = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest == __version__
