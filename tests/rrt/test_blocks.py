"""The blocks of Python in README.md, docs/library.md, docs/engines.md and docs/integrations.md run."""

import re
import shutil

import pytest

from tests import ROOT

NAMES = ("query", "a", "b", "c", "d")


def blocks_of(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


BLOCKS = [
    pytest.param(block, id=f"{page} {number}")
    for page in ("README.md", "docs/library.md", "docs/engines.md", "docs/integrations.md")
    for number, block in enumerate(blocks_of(page))
]


@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_runs(block, saved, paths, tmp_path, monkeypatch):
    for module in re.findall(r"^(?:import|from) (\w+)", block, re.MULTILINE):
        pytest.importorskip(module)
    monkeypatch.chdir(tmp_path)
    shutil.copy(saved, "checkpoint.pt")
    for name, path in zip(NAMES, paths, strict=False):
        shutil.copy(path, f"{name}.jpg")
    found: dict = {"photos": [f"{name}.jpg" for name in NAMES[1:]]}
    exec(block, found)
    if "scores" in found:
        assert set(found["positions"][0]) == {-1, 0, 1, 2, 3} and found["scores"][0, 0] > found["scores"][0, 3]
    if "ranked" in found:
        assert sorted(found["ranked"].ids[0]) == [0, 1, 2, 3] and not found["ranked"].missing
    if "points" in found:
        assert {point.id for point in found["points"]} == {match.index for match in found["matches"]} == {0, 1, 2, 3}
    if "best" in found:
        assert sorted(each.path for each in found["best"]) == found["photos"]
    if "gallery" in found:
        assert len(found["gallery"]) == 3 + ("scores" in found)
