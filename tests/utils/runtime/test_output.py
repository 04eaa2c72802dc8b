"""Output that cannot be written: streams in process, and commands on a full disk or a closed pipe."""

import errno
import io
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from sacred import Experiment

from tests import ROOT
from utils.experiment.sacred_setup import reports_errors, set_up
from utils.runtime.output import exit_code, unfailing_output

FULL = Path("/dev/full")
LONG = "a line of a log\n" * 10_000  # more than streams and pipes hold

pytestmark = pytest.mark.skipif(not FULL.exists(), reason="needs Linux's /dev/full")


def closed_pipe():
    """A stream to a pipe whose reading end is closed."""
    reading, writing = os.pipe()
    os.close(reading)
    return os.fdopen(writing, "w")


@pytest.mark.parametrize(
    ("make", "number", "code"),
    [(lambda: FULL.open("w"), errno.ENOSPC, 1), (closed_pipe, errno.EPIPE, 141)],
    ids=["full", "gone"],
)
def test_unwritable_output_is_dropped(make, number, code, monkeypatch, capsys):
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
    message = "the output could not be written: No space left on device\n"
    assert capsys.readouterr().err == (message if code == 1 else "")


def test_writable_output_is_complete(tmp_path, monkeypatch):
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


def test_nonblocking_output_waits_for_its_reader(monkeypatch):
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


def test_streams_without_a_descriptor(monkeypatch):
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


def test_the_run_folder_keeps_lost_output(ex, tmp_path, monkeypatch):
    with FULL.open("w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        run = ex.run_commandline(["talker", "-F", str(tmp_path / "log")])
    assert run.status == "COMPLETED"
    assert (tmp_path / "log" / "1" / "cout.txt").read_text("utf-8") == LONG + "写真\n"


def test_lost_output_of_a_printing_command_is_an_error(ex, monkeypatch):
    with FULL.open("w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with pytest.raises(SystemExit) as ended:
            ex.run_commandline(["talker", "print_config"])
    assert ended.value.code == 1


def test_exit_codes_of_commands(tmp_path):
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
                (["-m", "utils.logs", "logs/example_demo_global"], full, subprocess.PIPE, 1),
            )
        ]
    for process, code in processes:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == code, errors
        assert not errors or not ("Traceback" in errors or "Exception ignored" in errors)
    assert len((tmp_path / "demo" / "train.txt").read_text().splitlines()) == 12
