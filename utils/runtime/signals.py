"""Signals that end a command: at once, or after a block that defers them, when the work is saved."""

import ctypes
import multiprocessing.util
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from utils.errors import InputError
from utils.runtime.ranks import is_distributed

# of terminals and batch schedulers; Windows knows the first two
END_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)
)
REPEAT_WINDOW = 5  # seconds in which a terminal that closes, or a launcher, sends a signal again
# bytes; the system takes 107 for a socket, and Python adds "/pymp-xxxxxxxx/listener-xxxxxxxx"
MAX_TMPDIR_LENGTH = 107 - len("/pymp-xxxxxxxx/listener-xxxxxxxx")
PR_SET_PDEATHSIG = 1  # of Linux's sys/prctl.h


class Interrupted(SystemExit, KeyboardInterrupt):
    """Ends a command without a traceback, with exit code 128 + the signal's number."""


class _Pending:
    """The signal that has been received, and the number of blocks that defer it."""

    number: int | None = None
    received_at = 0.0  # on the monotonic clock
    deferred_by = 0


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """In the block, `END_SIGNALS` raise Interrupted; another one after `REPEAT_WINDOW` ends the process at once.

    Outside the main thread nothing changes. InputError where no temporary file can be written.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    process = os.getpid()

    def end(number: int, frame) -> None:
        is_repeated = _Pending.number is not None and time.monotonic() - _Pending.received_at > REPEAT_WINDOW
        if is_repeated or os.getpid() != process:  # a new worker of the loader inherits the handler
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif _Pending.number is None:
            print(f"interrupted by {signal.Signals(number).name}", file=sys.stderr)
            _Pending.number, _Pending.received_at = number, time.monotonic()
            if not _Pending.deferred_by:
                raise Interrupted(128 + number)

    make_socket_folder()
    _Pending.number = None
    before = [signal.signal(handled, end) for handled in END_SIGNALS]
    try:
        yield
    finally:
        if _Pending.number is None or not is_distributed():  # else the launcher may send it again
            for handled, handler in zip(END_SIGNALS, before, strict=True):
                signal.signal(handled, handler)
            _Pending.number = None


def make_socket_folder() -> None:
    """Make the folder of the sockets over which the loader's workers send batches; it is deleted at exit.

    It is in /tmp if TMPDIR is too long for the address of a socket, as no batch would ever arrive. InputError if no
    folder can be made.
    """
    before = tempfile.tempdir
    try:
        if len(os.fsencode(tempfile.gettempdir())) > MAX_TMPDIR_LENGTH:
            tempfile.tempdir = "/tmp"
        multiprocessing.util.get_temp_dir()
    except OSError as error:
        raise InputError(f"temporary files cannot be written ({error}): set TMPDIR to a folder for them") from error
    finally:
        tempfile.tempdir = before


@contextmanager
def deferred_signals() -> Iterator[Callable[[], bool]]:
    """Defer signals to the end of the block, of nested ones the outermost, which raises Interrupted.

    Yields a function that tells whether a signal is pending."""
    _Pending.deferred_by += 1
    try:
        yield lambda: _Pending.number is not None
    finally:
        _Pending.deferred_by -= 1
    if not _Pending.deferred_by:
        raise_pending_signal()


def raise_pending_signal() -> None:
    """Raise Interrupted if a signal has come."""
    if _Pending.number is not None:
        raise Interrupted(128 + _Pending.number)


def die_with_parent(worker: int) -> None:
    """Have Linux end this process, a worker of a loader, when its parent dies, even if that is killed.

    Otherwise a worker checks on its parent every few seconds, and holds its locks until then. It ignores the signals
    that end the parent, which needs its workers to finish the iteration.
    """
    os.setpgrp()  # signals of terminals and launchers are sent to whole groups
    for end_signal in set(END_SIGNALS) - {signal.SIGTERM}:  # with which loaders end their workers
        signal.signal(end_signal, signal.SIG_IGN)

    def end(number: int, frame) -> None:
        shutil.rmtree(multiprocessing.util.get_temp_dir(), ignore_errors=True)  # the parent cannot any more
        os._exit(1)

    signal.signal(signal.SIGUSR2, end)
    signal_with_parent(signal.SIGUSR2)


def signal_with_parent(number: int) -> None:
    """Have Linux send this process a signal when its parent ends; on other systems nothing happens."""
    with suppress(AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
