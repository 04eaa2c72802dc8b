"""Files written by several processes at once, by killed ones, and on disks that refuse."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests import ROOT
from tests.faults import fill_disk, names
from utils.errors import InputError
from utils.io import disk
from utils.io.atomic import atomic_write, atomic_write_all
from utils.io.disk import check_disk_space
from utils.io.lock import exclusive_lock

MEGABYTES_2 = 1 << 21
IMPORTS = """
import os, signal, sys, time
from pathlib import Path
from utils.errors import InputError
from utils.io.atomic import atomic_write
from utils.io.lock import exclusive_lock
"""


def started(code: str, *arguments: object) -> subprocess.Popen:
    """A process of its own that runs `code`."""
    command = [sys.executable, "-c", f"{IMPORTS}\n{code}", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen) -> tuple[int, str]:
    """Its exit status, and what it wrote of errors."""
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors


WRITE_AGAIN_AND_AGAIN = """
for _ in range(30):
    with atomic_write(sys.argv[1]) as file:
        for _ in range(2):
            file.write(sys.argv[2].encode() * (1 << 20))
"""


def test_three_processes_write_one_file(tmp_path):
    writers = [started(WRITE_AGAIN_AND_AGAIN, tmp_path / "file", letter) for letter in "abc"]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        if (tmp_path / "file").exists():
            content = (tmp_path / "file").read_bytes()
            assert len(content) == MEGABYTES_2
            assert content == content[:1] * MEGABYTES_2
            seen.add(content[:1])
    assert [ended(writer) for writer in writers] == [(0, "")] * 3
    assert seen <= {b"a", b"b", b"c"} and seen
    assert names(tmp_path) == ["file"]


KILLED_WHILE_WRITING = """
with atomic_write(sys.argv[1]) as file:
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_killed_processes_left_is_deleted_a_day_later(tmp_path):
    (tmp_path / "file").write_text("old")
    assert ended(started(KILLED_WHILE_WRITING, tmp_path / "file")) == (-signal.SIGKILL, "")
    (left,) = (name for name in names(tmp_path) if name.endswith(".part"))
    for age, kept in ((23, [left]), (25, [])):
        then = time.time() - age * 3600
        os.utime(tmp_path / left, (then, then))
        with atomic_write(tmp_path / "other") as file:
            file.write(b"new")
        assert names(tmp_path) == [*kept, "file", "other"]
    assert (tmp_path / "file").read_text() == "old"


def test_a_file_that_is_being_written_is_no_leftover(tmp_path):
    (tmp_path / "mine.part").write_text("mine")
    with atomic_write(tmp_path / "file") as first:
        first.write(b"first")
        with atomic_write(tmp_path / "file") as second:
            second.write(b"second")
        assert (tmp_path / "file").read_text() == "second"
    assert (tmp_path / "file").read_text() == "first"
    assert names(tmp_path) == ["file", "mine.part"]


def test_a_body_that_fails_leaves_what_was_there(tmp_path):
    (tmp_path / "file").write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_write(tmp_path / "file") as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert names(tmp_path) == ["file"] and (tmp_path / "file").read_text() == "old"


def test_several_files_come_all_or_none(tmp_path, monkeypatch):
    targets = [tmp_path / "new" / "a", tmp_path / "new" / "b"]
    with atomic_write_all(*targets) as (a, b):
        a.write(b"a1")
        b.write(b"b1")
        assert not any(target.exists() for target in targets)
    fill_disk(monkeypatch, ".b.part", 1)
    full = r"b could not be written: No space left on device; what stood there is kept$"
    with pytest.raises(InputError, match=full), atomic_write_all(*targets) as (a, b):
        a.write(b"a2")
        b.write(b"b2")
    assert [target.read_text() for target in targets] == ["a1", "b1"]
    assert names(tmp_path / "new") == ["a", "b"]


def test_none_of_several_files_comes_where_one_is_a_folder(tmp_path):
    (tmp_path / "b").mkdir()
    folder = r"b could not be written: Is a directory"
    with pytest.raises(InputError, match=folder), atomic_write_all(tmp_path / "a", tmp_path / "b"):
        pytest.fail("nothing can be written")
    assert names(tmp_path) == ["b"]


HOLD = """
with exclusive_lock(Path(sys.argv[1]), "the set", "wait"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_one_process_at_a_time(tmp_path):
    lock = tmp_path / "new" / ".lock"
    holder = started(HOLD, lock)
    assert holder.stdout.readline() == "held\n"
    told = f"the set is being written by process {holder.pid} on {socket.gethostname()}: wait"
    with pytest.raises(InputError, match=f"^{re.escape(told)}$"), exclusive_lock(lock, "the set", "wait"):
        pytest.fail("two hold the lock")
    holder.kill()
    ended(holder)
    assert lock.exists()
    with exclusive_lock(lock, "the set", "wait"):
        assert lock.with_name(".lock.holder").read_text() == f"process {os.getpid()} on {socket.gethostname()}"
        with pytest.raises(InputError, match="is being written by process"), exclusive_lock(lock, "the set", "wait"):
            pytest.fail("two hold the lock")
    assert names(lock.parent) == []


ORPHAN = """
with exclusive_lock(Path(sys.argv[1]), "the set", "wait"):
    if not os.fork():
        os.close(1), os.close(2)  # which its parent's end is read from
        time.sleep(20)
        os._exit(0)
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_lock_of_a_killed_process_is_free_whatever_its_workers_do(tmp_path):
    holder = started(ORPHAN, tmp_path / ".lock")
    assert holder.stdout.readline() == "held\n"
    holder.kill()
    ended(holder)
    with exclusive_lock(tmp_path / ".lock", "the set", "wait"):
        pass


REFUSED = """
from utils.errors import InputError
if os.geteuid() == 0:
    os.seteuid(65534)  # nobody: what root writes is never refused
folder = Path(sys.argv[1])
for write in (atomic_write(folder / "file"), exclusive_lock(folder / ".lock", "it", "wait")):
    try:
        with write:
            print("written")
    except InputError as error:
        print(error)
"""


def test_a_folder_that_may_not_be_written_to(tmp_path):
    tmp_path.chmod(0o555)
    refused = started(REFUSED, tmp_path)
    printed, errors = refused.communicate(timeout=60)
    tmp_path.chmod(0o755)
    assert printed.splitlines() == [
        f"{tmp_path}/file could not be written: Permission denied; what stood there is kept",
        f"{tmp_path} cannot be written to: Permission denied; choose another folder",
    ]
    assert errors == "" and names(tmp_path) == []


def test_a_file_where_a_folder_must_be(tmp_path):
    (tmp_path / "file").write_text("mine")
    below = tmp_path / "file" / "below"
    with pytest.raises(InputError, match=r"below/a could not be written: Not a directory"), atomic_write(below / "a"):
        pytest.fail("nothing can be written")
    refused = r"below cannot be written to: Not a directory; choose another folder$"
    with pytest.raises(InputError, match=refused), exclusive_lock(below / ".lock", "it", "wait"):
        pytest.fail("nothing can be locked")
    assert (tmp_path / "file").read_text() == "mine"


def test_room(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=2_000_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: {tmp_path: usage}[folder])
    check_disk_space({tmp_path / "not" / "made": 2_000_000_000}, "a cache")
    with pytest.raises(InputError, match=rf"^a cache in {tmp_path}/not/made needs 3 GB, but 2 GB are free: make room"):
        check_disk_space({tmp_path / "not" / "made": 3_000_000_000}, "a cache")
    with pytest.raises(InputError, match=rf"^it in {tmp_path} and {tmp_path}/made needs 3 GB, but 2 GB are free"):
        check_disk_space({tmp_path: 2_000_000_000, tmp_path / "made": 1_000_000_000}, "it")


def test_room_in_a_folder_that_cannot_be_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda folder: os.listdir("/proc/none"))  # noqa: PTH208
    told = rf"^{tmp_path} cannot take a cache: No such file or directory; choose another folder$"
    with pytest.raises(InputError, match=told):
        check_disk_space({tmp_path: 1}, "a cache")
