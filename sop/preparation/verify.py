"""Whether every image can be opened, and which are the same file twice."""

import hashlib
import io
import os
from collections import Counter
from collections.abc import Iterable
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from tqdm import tqdm

from utils.errors import InputError

MISSING = "missing"


class Opened(NamedTuple):
    """What came of opening one image: the digest of its file, or what is wrong with it."""

    path: str
    digest: bytes | None
    fault: str | None


def verify_images(folder: Path, paths: Iterable[str]) -> None:
    """Decode the images at `paths` below `folder`; print the bad ones, and how many files are identical.

    InputError when some are missing or unreadable.
    """
    paths = list(dict.fromkeys(paths))
    digests: Counter[bytes] = Counter()
    faults = []
    with ThreadPool(os.cpu_count()) as threads:  # decoding and hashing let other threads run
        opened = threads.imap(partial(_open, folder), paths, chunksize=16)
        for path, digest, fault in tqdm(opened, desc="Verifying", total=len(paths), unit="image"):
            if digest:
                digests[digest] += 1
            if fault:
                faults.append(fault)
                tqdm.write(f"{folder / path}: {fault}")
    copies = [count for count in digests.values() if count > 1]
    print(f"{len(paths)} images, {len(copies)} groups of identical files ({sum(copies)} files)")
    if faults:
        missing = faults.count(MISSING)
        raise InputError(
            f"{folder}: of {len(paths)} images {missing} are missing and {len(faults) - missing} unreadable "
            "(listed above): move the folder away and run prepare_data.py to unpack it again"
        )


def _open(folder: Path, path: str) -> Opened:
    try:
        content = (folder / path).read_bytes()
        with Image.open(io.BytesIO(content)) as photo:
            photo.convert("RGB")
        return Opened(path, hashlib.sha256(content).digest(), None)
    except FileNotFoundError:
        return Opened(path, None, MISSING)
    except Exception as error:  # a damaged image can raise anything
        return Opened(path, None, f"unreadable ({error})")
