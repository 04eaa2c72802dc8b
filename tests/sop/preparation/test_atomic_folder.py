"""Folders made by two processes at once, or by one that is killed."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sop.preparation.atomic_folder import atomic_folder, is_empty_or_missing
from tests import ROOT
from tests.faults import names
from utils.errors import InputError

MAKE = """
import sys, time
from pathlib import Path
from sop.preparation.atomic_folder import atomic_folder
with atomic_folder(Path(sys.argv[1]), "drawing", 2) as hidden:
    (hidden / "a").write_text("a")
    print("begun", flush=True)
    time.sleep(60)
"""


def make(folder: Path, files: str = "ab", num_files: int = 2) -> None:
    with atomic_folder(folder, "drawing", num_files) as hidden:
        assert hidden.parent == folder.parent
        for name in files:
            (hidden / "below").mkdir(exist_ok=True)
            (hidden / "below" / name).write_text(name)


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path):
    first = subprocess.Popen(
        [sys.executable, "-c", MAKE, tmp_path / "set"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert first.stdout.readline() == "begun\n"
    with pytest.raises(InputError, match=rf"set is being written by process {first.pid} on .*: run the command"):
        make(tmp_path / "set")
    assert [name.rpartition(".")[2] for name in names(tmp_path)] == ["drawing", "holder"]
    make(tmp_path / "other")
    first.kill()
    assert first.wait() == -signal.SIGKILL
    first.stdout.close()
    assert is_empty_or_missing(tmp_path / "set")
    make(tmp_path / "set")
    assert names(tmp_path) == ["other", "set"] and names(tmp_path / "set" / "below") == ["a", "b"]
    with pytest.raises(InputError, match=r"set is not empty: choose another folder"):
        make(tmp_path / "set")


def test_what_others_left_is_deleted_and_what_is_not_ours_is_kept(tmp_path):
    ours = [".set.drawing", ".set.0123abcd.drawing"]
    others = [".set.unpacking", ".set2.0123abcd.drawing", ".my.set.0123abcd.drawing", "set.drawing"]
    for name in ours + others:
        (tmp_path / name / "below").mkdir(parents=True)
    make(tmp_path / "set")
    assert names(tmp_path) == sorted([*others, "set"])


@pytest.mark.parametrize("files", ["a", "abc"])
def test_another_number_of_files_is_no_whole_folder(tmp_path, files):
    with pytest.raises(InputError, match=rf"set would have {len(files)} of 2 files: run the command again"):
        make(tmp_path / "set", files)
    assert names(tmp_path) == []


def test_what_is_free(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    assert is_empty_or_missing(tmp_path / "none") and is_empty_or_missing(tmp_path / "empty")
    assert (
        not is_empty_or_missing(tmp_path)
        and not is_empty_or_missing(tmp_path / "file")
        and not is_empty_or_missing(tmp_path / "file" / "below")
    )
    with pytest.raises(InputError, match=r"loop cannot be read \(Too many levels of symbolic links\): choose another"):
        is_empty_or_missing(tmp_path / "loop")


def test_a_folder_where_nothing_may_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file cannot be written to: File exists; choose another folder$"):
        make(tmp_path / "file" / "set")


def test_the_folder_is_open_to_others_as_any_new_one_is(tmp_path):
    make(tmp_path / "set")
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "set").stat().st_mode == (tmp_path / "plain").stat().st_mode
