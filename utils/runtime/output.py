"""Output that never fails: a full disk or a closed pipe does not end a command. Without torch."""

import io
import os
import select
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TextIO


class _Output(io.FileIO):
    """A file on a descriptor that drops bytes which cannot be written; `lost` is the last error."""

    lost: OSError | None = None

    def write(self, data, /) -> int:
        remaining = memoryview(data)
        try:
            while remaining:
                written = super().write(remaining)
                if written is None:  # a terminal that another program has set to non-blocking
                    select.select((), (self,), ())
                remaining = remaining[written or 0 :]
        except OSError as error:
            self.lost = error
        return len(data)


@contextmanager
def unfailing_output() -> Iterator[Callable[[], OSError | None]]:
    """In the block printing never fails: text is dropped if the disk is full or the pipe's reader has gone, and
    characters that the encoding lacks are escaped.

    Yields a function that returns the error by which output to stdout was lost, or None.
    """
    originals = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(_unfailing, originals)
    output = sys.stdout

    def lost() -> OSError | None:
        output.flush()
        return getattr(getattr(output, "buffer", None), "lost", None)

    try:
        yield lost
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = originals


def _unfailing(stream: TextIO | None) -> TextIO:
    """A stream to the same descriptor that never fails. A stream without a descriptor is returned as it is; for None, a
    closed one, a stream that drops everything."""
    if stream is None:  # the descriptor stays open: a logger may write to it after the block
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
    """The exit code of a command whose result is its output; `lost` is the error by which output was lost, or None.

    0 without an error. 141 without a message if the reader has gone, as of a program that SIGPIPE ends (`git log |
    head`). Else 1, with a message.
    """
    if lost is None:
        return 0
    if isinstance(lost, BrokenPipeError):
        return 128 + signal.SIGPIPE
    print(f"the output could not be written: {lost.strerror}", file=sys.stderr)
    return 1
