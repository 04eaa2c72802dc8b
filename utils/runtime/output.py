"""What a command says: never worth more than what it does. Without torch, for every command."""

import io
import os
import select
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TextIO


class _Output(io.FileIO):
    """A descriptor's file that takes all it is given: what cannot be written is dropped, and `lost` says why."""

    lost: OSError | None = None

    def write(self, data, /) -> int:
        rest = memoryview(data)
        try:
            while rest:
                written = super().write(rest)
                if written is None:  # a terminal that another program has set not to wait
                    select.select((), (self,), ())
                rest = rest[written or 0 :]
        except OSError as error:
            self.lost = error
        return len(data)


@contextmanager
def unfailing_output() -> Iterator[Callable[[], OSError | None]]:
    """In the block no printing fails: what stdout and stderr cannot write, on a full disk or because their reader has
    gone, is dropped, and what their encoding lacks is escaped.

    The function that it gives says why something of stdout was lost; None: nothing was.
    """
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(_unfailing, before)
    output = sys.stdout

    def lost() -> OSError | None:
        output.flush()
        return getattr(getattr(output, "buffer", None), "lost", None)

    try:
        yield lost
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before


def _unfailing(stream: TextIO | None) -> TextIO:
    """A stream as another one, but for its errors; one that is no descriptor's is returned, one that is closed is
    replaced by one that drops everything."""
    if stream is None:  # its number is left open: what logs to it may outlive the block
        return io.TextIOWrapper(_Output(os.open(os.devnull, os.O_WRONLY), "w", closefd=False))  # type: ignore[type-var]
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    try:
        output = _Output(stream.fileno(), "w", closefd=False)
    except io.UnsupportedOperation:
        return stream
    with suppress(OSError):
        stream.flush()
    return io.TextIOWrapper(
        output,  # type: ignore[type-var]
        stream.encoding,
        "backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def exit_code(lost: OSError | None) -> int:
    """How a command ends whose result is what it has printed, some of which was `lost`.

    A reader that has gone wanted no more: 141, in silence, as a program that ends by SIGPIPE, `git log | head` for one.
    Else 1, with a message.
    """
    if lost is None:
        return 0
    if isinstance(lost, BrokenPipeError):
        return 128 + signal.SIGPIPE
    print(f"the output could not be written: {lost.strerror}", file=sys.stderr)
    return 1
