import csv
import subprocess
import sys
from io import StringIO

from tests.utils.logs.folders import (
    training_run,
)
from utils.logs.__main__ import main


def test_nothing_read_is_an_error(tmp_path, capsys):
    (tmp_path / "7").mkdir()
    for folder in (tmp_path, tmp_path / "nowhere"):
        assert main([str(folder)]) == 1
        assert "no run could be read" in capsys.readouterr().err


def test_from_the_command_line(tmp_path):
    training_run(tmp_path / "1")
    (tmp_path / "2").mkdir()
    arguments = [str(tmp_path), str(tmp_path / "1"), "--format", "csv", "--plot", str(tmp_path / "curves.png")]
    done = subprocess.run([sys.executable, "-m", "utils.logs", *arguments], capture_output=True, text=True, check=True)
    rows = list(csv.DictReader(StringIO(done.stdout)))
    assert [row["status"] for row in rows] == ["COMPLETED", "UNREADABLE"]
    assert done.stderr == f"could not be read: {tmp_path}/2: run.json is missing; config.json is missing\n"
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
