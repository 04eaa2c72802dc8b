"""What cannot be printed: streams in process, and commands whose reader has gone or whose disk is full."""

import errno
import io
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from sacred import Experiment

from report.command import main as report
from tests import ROOT
from tests.utils.logs.folders import training_run
from utils.experiment.sacred_setup import reports_errors, set_up
from utils.logs.__main__ import main as logs
from utils.runtime.output import exit_code, unfailing_output

FULL = Path("/dev/full")
LONG = "a line of a log\n" * 10_000  # more than streams and pipes hold

pytestmark = pytest.mark.skipif(not FULL.exists(), reason="needs Linux's /dev/full")


def without_reader():
    """A stream into a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    return os.fdopen(writing, "w")


@pytest.mark.parametrize(
    ("make", "number", "code"),
    [(lambda: FULL.open("w"), errno.ENOSPC, 1), (without_reader, errno.EPIPE, 141)],
    ids=["full", "gone"],
)
def test_what_cannot_be_written_is_dropped(make, number, code, monkeypatch, capsys):
    with make() as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with unfailing_output() as lost:
            assert sys.stdout is not stream
            assert lost() is None and exit_code(lost()) == 0
            print("a word")
            print(LONG, flush=True)
            reason = lost()
            assert reason is not None and reason.errno == number
            assert exit_code(reason) == code
        assert sys.stdout is stream
    told = "the output could not be written: No space left on device\n"
    assert capsys.readouterr().err == (told if code == 1 else "")


def test_what_can_be_written_is_whole(tmp_path, monkeypatch):
    """Also in an encoding that lacks a letter, beside what was written before and is written afterwards."""
    with (tmp_path / "log").open("w", encoding="latin-1") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        print("before")
        with unfailing_output() as lost:
            print(f"café 写真 \ud800\n{LONG}", end="")
            assert lost() is None
        print("after")
    assert (tmp_path / "log").read_bytes() == rf"before|caf{chr(233)} \u5199\u771f \ud800|{LONG}after|".replace(
        "|", "\n"
    ).encode("latin-1")


def test_a_reader_that_is_waited_for(monkeypatch):
    """A pipe that is set not to wait takes some of a long text, and then refuses until it has been read."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    taken: list[str] = []

    def read():
        with os.fdopen(reading) as pipe:
            taken.append(pipe.read())

    reader = threading.Timer(0.2, read)
    reader.start()
    with os.fdopen(writing, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with unfailing_output() as lost:
            print(LONG, end="")
            assert lost() is None
    reader.join()
    assert taken == [LONG]


def test_streams_that_are_no_files(monkeypatch):
    """A program's own are left, closed ones take everything."""
    own = io.StringIO()
    monkeypatch.setattr(sys, "stdout", own)
    monkeypatch.setattr(sys, "stderr", None)
    with unfailing_output() as lost:
        print("heard")
        print("not heard", file=sys.stderr)
        assert lost() is None
    assert own.getvalue() == "heard\n" and sys.stderr is None


@pytest.fixture
def ex():
    experiment = set_up(Experiment("talker", save_git_info=False))

    @experiment.main
    @reports_errors
    def main():
        print(LONG + "写真")

    return experiment


def test_a_run_folder_has_what_was_lost(ex, tmp_path, monkeypatch):
    with FULL.open("w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        run = ex.run_commandline(["talker", "-F", str(tmp_path / "log")])
    assert run.status == "COMPLETED"
    assert (tmp_path / "log" / "1" / "cout.txt").read_text("utf-8") == LONG + "写真\n"


def test_a_command_that_only_prints_says_that_it_could_not(ex, monkeypatch):
    with FULL.open("w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with pytest.raises(SystemExit) as ended:
            ex.run_commandline(["talker", "print_config"])
    assert ended.value.code == 1


def test_tables_that_could_not_be_printed(tmp_path, monkeypatch, capsys):
    training_run(tmp_path / "1")
    with FULL.open("w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert logs([str(tmp_path)]) == 1
        assert report([str(tmp_path), f"--out={tmp_path / 'page.html'}"]) == 0
    assert capsys.readouterr().err == "the output could not be written: No space left on device\n"
    assert (tmp_path / "page.html").exists()


def test_processes_end_well(tmp_path):
    """Python itself says nothing at the end, either."""
    demo = ["prepare_data.py", "demo", "with", f"demo_dir={tmp_path / 'demo'}", "demo_products=4"]
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as gone, FULL.open("w") as full:
        processes = [
            (subprocess.Popen([sys.executable, *words], cwd=ROOT, stdout=out, stderr=errors, text=True), code)
            for words, out, errors, code in (
                (demo, gone, full, 0),
                (["prepare_data.py", "print_config"], gone, subprocess.PIPE, 141),
                (["-m", "utils.logs", "nowhere"], gone, subprocess.PIPE, 1),
                (["-m", "utils.logs", "--help"], full, subprocess.PIPE, 0),
            )
        ]
    for process, code in processes:
        _, told = process.communicate(timeout=60)
        assert process.returncode == code, told
        assert not told or not ("Traceback" in told or "Exception ignored" in told)
    assert len((tmp_path / "demo" / "train.txt").read_text().splitlines()) == 12
