"""The demo's steps, with a python that only notes what it is called for."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests import ROOT

TRAININGS = ("global", "frozen", "finetune")


def demo_chain(folder: Path) -> list[str]:
    """Run the chain; what its steps were called for."""
    settings = {"BIN": folder, "RUN": folder / "logs", "SEED": 1, "DATA": folder, "EPOCHS": "1 2 3", "VIEWS": 4}
    words = [f"{name}={value}" for name, value in settings.items()]
    subprocess.run(["make", "demo-chain", *words], cwd=ROOT, check=True, capture_output=True)
    return [call for call in (folder / "calls").read_text().splitlines() if ".py" in call]


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_a_training_that_was_interrupted_goes_on(tmp_path):
    (tmp_path / "python").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n[ "$2" != -F ] || mkdir -p "$3"\n')
    (tmp_path / "python").chmod(0o755)
    runs = tmp_path / "logs" / "1"
    (runs / "global").mkdir(parents=True)
    (runs / "global" / "last.pt").touch()
    calls = demo_chain(tmp_path)
    assert len(calls) == 8 and [call.endswith(" continue_run=True") for call in calls] == [True, *[False] * 7]
    assert f"experiment_global.py -F {runs}/global with temp_dir={runs}/global dataset.demo_global" in calls[0]
    for name in TRAININGS:
        (runs / name / "last.pt").touch()
    assert demo_chain(tmp_path) == calls  # all have ended
    for name in TRAININGS[1:]:
        (runs / name / "done").unlink()
    assert [call.endswith(" continue_run=True") for call in demo_chain(tmp_path)[8:]] == [True, True]
