"""Whether every image can be opened, and which are the same file twice."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from sop.photo import naming, opened, to_rgb
from utils.errors import InputError


class Opened(NamedTuple):
    """What came of opening one image: the digest of its file, or what is wrong with it."""

    digest: bytes | None
    fault: InputError | None


def verify_images(folder: Path, paths: Iterable[str]) -> None:
    """Decode the images at `paths` below `folder`; print the bad ones, and how many files are identical.

    InputError when some are missing or unreadable.
    """
    paths = list(dict.fromkeys(paths))
    digests: Counter[bytes] = Counter()
    faults = []
    with ThreadPool(os.cpu_count()) as threads:  # decoding and hashing let other threads run
        results = threads.imap(_open, [folder / path for path in paths], chunksize=16)
        for digest, fault in tqdm(results, desc="Verifying", total=len(paths), unit="image"):
            if digest:
                digests[digest] += 1
            if fault:
                faults.append(fault)
                tqdm.write(str(fault))
    copies = [count for count in digests.values() if count > 1]
    print(f"{len(paths)} images, {len(copies)} groups of identical files ({sum(copies)} files)")
    if faults:
        missing = sum(isinstance(fault.__cause__, FileNotFoundError) for fault in faults)
        raise InputError(
            f"{folder}: of {len(paths)} images {missing} are missing and {len(faults) - missing} unreadable "
            "(listed above): move the folder away and run prepare_data.py to unpack it again"
        )


def _open(path: Path) -> Opened:
    try:
        with opened(path) as photo:
            to_rgb(photo)
        with naming(path), path.open("rb") as file:
            return Opened(hashlib.file_digest(file, "sha256").digest(), None)
    except InputError as fault:
        return Opened(None, fault)
