"""Folders that appear under their name only when they are complete."""

import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.errors import InputError
from utils.io.lock import exclusive_lock

BUSY_ADVICE = "run the command again later, or choose another folder"


def is_empty_or_missing(folder: Path) -> bool:
    """Whether `folder` is an empty folder or does not exist; InputError if it cannot be read."""
    try:
        return not any(folder.iterdir())
    except FileNotFoundError:
        return True
    except NotADirectoryError:
        return False
    except OSError as error:
        raise InputError(f"{folder} cannot be read ({error.strerror}): choose another folder") from error


@contextmanager
def atomic_folder(folder: Path, suffix: str, num_files: int) -> Iterator[Path]:
    """A new hidden folder that is renamed to `folder` at the end of the block, if it then holds `num_files` files.

    The hidden folder lies beside `folder`; its name ends in `suffix`. One process at a time makes `folder`, and deletes
    hidden folders of killed ones. InputError if another process makes it, if `folder` is not empty, or for another
    number of files; OSError from the operating system.
    """
    with exclusive_lock(folder.with_name(f".{folder.name}.lock"), str(folder), BUSY_ADVICE):
        if not is_empty_or_missing(folder):
            raise InputError(f"{folder} is not empty: choose another folder, or move it away")
        leftover = re.compile(rf"\.{re.escape(folder.name)}(\.[0-9a-f]{{8}})?\.{suffix}")
        for path in folder.parent.iterdir():
            if leftover.fullmatch(path.name):
                shutil.rmtree(path, ignore_errors=True)
        hidden = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.{suffix}")
        hidden.mkdir()
        try:
            yield hidden
            found = sum(path.is_file() for path in hidden.rglob("*"))
            if found != num_files:  # where files cannot be locked, another process may have deleted it
                raise InputError(f"{folder} would have {found} of {num_files} files: run the command again")
            hidden.replace(folder)
        finally:
            shutil.rmtree(hidden, ignore_errors=True)
