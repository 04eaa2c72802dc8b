"""Signals that end a command: at once, or, while a block defers them, where the work is saved."""

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

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)  # of terminals and batch schedulers
SIGHUP_WINDOW = 1  # seconds in which a terminal that closes sends SIGHUP by the shell and by the system
# bytes; the system takes 107 for a socket, and Python adds "/pymp-xxxxxxxx/listener-xxxxxxxx"
LONGEST_TMPDIR = 107 - len("/pymp-xxxxxxxx/listener-xxxxxxxx")
PR_SET_PDEATHSIG = 1  # of Linux's sys/prctl.h


class Interrupted(SystemExit, KeyboardInterrupt):
    """Ends a command without a traceback, with exit code 128 + the signal's number."""


class _Pending:
    """The signal that has come, and how many blocks it waits for before it ends the command."""

    number: int | None = None
    received_at = 0.0  # when it came
    deferred_by = 0
    seconds = 0.0  # in which more of them are the same request


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """In the block, `ENDING` signals raise Interrupted; a second one ends the process at once.

    Outside the main thread nothing changes. InputError where no temporary file can be written.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    process = os.getpid()

    def end(number: int, frame) -> None:
        if os.getpid() != process:  # a worker, which has the handler, too
            raise Interrupted(128 + number)
        if _Pending.number is None and number == signal.SIGHUP:
            coalesce_signals(max(SIGHUP_WINDOW, _Pending.seconds))
        if not _Pending.seconds or (
            _Pending.number is not None and time.monotonic() - _Pending.received_at > _Pending.seconds
        ):
            for handled in ENDING:
                signal.signal(handled, signal.SIG_DFL)
        if _Pending.number is not None:
            if signal.getsignal(number) is signal.SIG_DFL:
                os.kill(process, number)
            return
        _Pending.received_at = time.monotonic()
        print(f"interrupted by {signal.Signals(number).name}", file=sys.stderr)
        _Pending.number = number
        if not _Pending.deferred_by:
            raise Interrupted(128 + number)

    make_socket_folder()
    _Pending.number, _Pending.seconds = None, 0.0
    before = [signal.signal(handled, end) for handled in ENDING]
    try:
        yield
    finally:
        if not _Pending.seconds or _Pending.number is None:  # else more of them may follow until the process has ended
            for handled, handler in zip(ENDING, before, strict=True):
                signal.signal(handled, handler)
            _Pending.number = None


def make_socket_folder() -> None:
    """Make the folder of the sockets by which this process's workers deliver; it is deleted at the process's end.

    It lies in /tmp where TMPDIR is too long a path for a socket: such a worker's batch would never come. InputError
    where no folder can be made.
    """
    before = tempfile.tempdir
    try:
        if len(os.fsencode(tempfile.gettempdir())) > LONGEST_TMPDIR:
            tempfile.tempdir = "/tmp"
        multiprocessing.util.get_temp_dir()
    except OSError as error:
        raise InputError(f"temporary files cannot be written ({error}): set TMPDIR to a folder for them") from error
    finally:
        tempfile.tempdir = before


def coalesce_signals(seconds: float) -> None:
    """Signals that follow a first one within so many seconds do not end the process: launchers pass on what the
    process has had itself."""
    _Pending.seconds = seconds


@contextmanager
def deferred_signals() -> Iterator[Callable[[], bool]]:
    """In the block a signal is only noted; the function that it gives says whether one has come. Then the block's end,
    of nested ones the outermost's, raises Interrupted."""
    _Pending.deferred_by += 1
    try:
        yield lambda: _Pending.number is not None
    finally:
        _Pending.deferred_by -= 1
    if _Pending.number is not None and not _Pending.deferred_by:
        raise Interrupted(128 + _Pending.number)


def raise_pending_signal() -> None:
    """Raise Interrupted where a signal has come, or comes within a second: one that has ended another process may be
    sent to this one, too."""
    with deferred_signals():
        time.sleep(1)


def die_with_parent(worker: int) -> None:
    """Have Linux end this process, a loader's worker, with the one that has started it, however that ends.

    Else it would look for itself after some seconds, and hold its parent's locks until then. Signals that end its
    parent are not for it: the parent finishes its iteration, and needs it.
    """
    os.setpgrp()  # signals of terminals and launchers are sent to whole groups
    for ending in set(ENDING) - {signal.SIGTERM}:  # by which loaders end their workers
        signal.signal(ending, signal.SIG_IGN)

    def end(number: int, frame) -> None:
        shutil.rmtree(multiprocessing.util.get_temp_dir(), ignore_errors=True)  # the parent's, who cannot any more
        os._exit(1)

    signal.signal(signal.SIGUSR2, end)
    signal_with_parent(signal.SIGUSR2)


def signal_with_parent(number: int) -> None:
    """Have Linux send this process a signal when the one that has started it ends; other systems do not know this."""
    with suppress(AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
