"""Lists of photos as text files: their lines, or one error that says what is wrong and where."""

import codecs
import stat
from collections.abc import Iterator
from pathlib import Path

from utils.errors import InputError

MAX_LINE = 4200  # bytes; the longest path that Linux takes has 4,095
MAX_SHOWN = 100  # characters of a line


def numbered_lines(file: Path, advice: str) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file and their numbers, from 1, whatever ends them; a byte-order mark is passed over.

    InputError, with some `advice`, for a file that is missing or cannot be read; with the line, for one that is no text
    or too long.
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
    """The error for a line that is not as expected."""
    more = " and more" if len(line) > MAX_SHOWN else ""
    return InputError(f"{file}, line {number}: expected {expected}, found {line[:MAX_SHOWN]!r}{more}")
