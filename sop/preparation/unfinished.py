"""Folders that have their name only when they are whole."""

import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.errors import InputError
from utils.io.lock import exclusive_lock

LATER = "run the command again later, or choose another folder"


def is_free(folder: Path) -> bool:
    """Whether nothing is there, or an empty folder; InputError where that cannot be seen."""
    try:
        return not any(folder.iterdir())
    except FileNotFoundError:
        return True
    except NotADirectoryError:
        return False
    except OSError as error:
        raise InputError(f"{folder} cannot be read ({error.strerror}): choose another folder") from error


@contextmanager
def unfinished(folder: Path, doing: str, num_files: int) -> Iterator[Path]:
    """A hidden new folder beside `folder` that takes its place at the end of the block, if all `num_files` are there.

    Its name has the word `doing`. One process at a time makes `folder`; what a killed one has left is deleted. Raises
    InputError where another is at it, where `folder` holds something, and for another number of files; OSError when the
    operating system refuses.
    """
    with exclusive_lock(folder.with_name(f".{folder.name}.lock"), str(folder), LATER):
        if not is_free(folder):
            raise InputError(f"{folder} is not empty: choose another folder, or move it away")
        leftover = re.compile(rf"\.{re.escape(folder.name)}(\.[0-9a-f]{{8}})?\.{doing}")
        for path in folder.parent.iterdir():
            if leftover.fullmatch(path.name):
                shutil.rmtree(path, ignore_errors=True)
        hidden = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.{doing}")
        hidden.mkdir()
        try:
            yield hidden
            found = sum(path.is_file() for path in hidden.rglob("*"))
            if found != num_files:  # where files cannot be locked, another process may have deleted it
                raise InputError(f"{folder} would have {found} of {num_files} files: run the command again")
            hidden.replace(folder)
        finally:
            shutil.rmtree(hidden, ignore_errors=True)
