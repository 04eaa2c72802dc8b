import gc
import runpy
import tempfile

import pytest

import eval_global
from tests import ROOT


def test_garbage_is_collected_but_for_that_of_modules():
    assert eval_global.ex.commands
    assert gc.isenabled() and gc.get_freeze_count() > 100_000


def test_no_temporary_folder(monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/proc/none"])
    with pytest.raises(SystemExit, match=r"^Error: No usable temporary directory found in .*: set TMPDIR to a folder"):
        runpy.run_path(str(ROOT / "startup.py"))
    gc.enable()
