"""Text files that list photos: their lines, or an error with the line number."""

import codecs
import stat
from collections.abc import Iterator
from pathlib import Path

from utils.errors import InputError

MAX_LINE = 4200  # bytes; the longest path on Linux has 4,095
MAX_QUOTED = 100  # characters of a line in an error


def numbered_lines(file: Path, advice: str) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file with their numbers, from 1; any line ending and a byte-order mark are accepted.

    InputError with the `advice` if the file is missing or cannot be read; with the line if that is not text or too
    long.
    """
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            raise InputError(f"{file} is a folder, a pipe or a device, not a list: {advice}")
        content = file.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{file} does not exist: {advice}") from error
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror or error}): {advice}") from error
    for number, line in enumerate(content.removeprefix(codecs.BOM_UTF8).splitlines(), start=1):
        if len(line) > MAX_LINE:
            raise malformed(file, number, f"at most {MAX_LINE:,} bytes", line)
        try:
            text = line.decode()
        except UnicodeDecodeError:
            text = "\0"
        if "\0" in text:
            raise malformed(file, number, "UTF-8 text", line)
        yield number, text


def malformed(file: Path, number: int, expected: str, line: str | bytes) -> InputError:
    """The error for a malformed line."""
    more = " and more" if len(line) > MAX_QUOTED else ""
    return InputError(f"{file}, line {number}: expected {expected}, found {line[:MAX_QUOTED]!r}{more}")
