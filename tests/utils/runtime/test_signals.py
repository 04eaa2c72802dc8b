import shutil
import tempfile
from multiprocessing import process, util
from multiprocessing.connection import Listener
from pathlib import Path

import pytest

from utils.errors import InputError
from utils.runtime.signals import make_socket_folder


@pytest.fixture
def without_folder(monkeypatch):
    """A process that has not made its folder for sockets yet."""
    config = process.current_process()._config  # type: ignore[attr-defined]
    monkeypatch.setitem(config, "tempdir", None)
    monkeypatch.setattr(util, "_finalizer_registry", {})
    yield
    shutil.rmtree(config["tempdir"] or "", ignore_errors=True)


@pytest.mark.parametrize(("length", "is_taken"), [(75, True), (76, False), (200, False)])
def test_sockets_with_a_long_temporary_folder(without_folder, monkeypatch, length, is_taken):
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        folder = Path(short) / ("x" * (length - len(short) - 1))
        folder.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        make_socket_folder()
        assert tempfile.gettempdir() == str(folder)
        assert Path(util.get_temp_dir()).parent == (folder if is_taken else Path("/tmp"))
        with Listener(family="AF_UNIX"):
            pass


def test_no_temporary_folder(without_folder, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/proc/none")
    with pytest.raises(InputError, match=r"temporary files cannot be written \(.*/proc/none.*\): set TMPDIR to a"):
        make_socket_folder()
