"""Memory that is freed and taken again, in processes of their own."""

import platform
import subprocess
import sys

import pytest

from tests import ROOT
from utils.runtime.memory import memory_limit

ROUNDS = """
import ctypes, resource, statistics
from utils.runtime.memory import keep_freed_memory
if {keep}:
    keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
faults = []
for _ in range(9):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [libc.malloc(2**24) for _ in range(8)]
    for block in blocks:
        ctypes.memset(block, 1, 2**24)
    for block in blocks:
        libc.free(ctypes.c_void_p(block))
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(int(statistics.median(faults)))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep or return memory as they do")
def test_freed_memory_is_reused():
    returned, kept = (
        int(subprocess.check_output([sys.executable, "-c", ROUNDS.format(keep=keep)], cwd=ROOT))
        for keep in (False, True)
    )
    assert kept <= returned / 4


def test_memory_limit_of_a_control_group(monkeypatch, tmp_path):
    monkeypatch.setattr("utils.runtime.memory.CONTROL_GROUP", tmp_path)
    machine = memory_limit()
    for limit, expected in (("max\n", machine), ("4096\n", 4096), ("9" * 30, machine)):
        (tmp_path / "memory.max").write_text(limit)
        assert memory_limit() == expected
