"""Check that every image can be decoded, and count identical files."""

import hashlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

from sop.images.photo import naming, opened, to_rgb
from sop.images.reading import read_photos
from utils.errors import InputError


def verify_images(folder: Path, paths: Iterable[str]) -> None:
    """Decode the images at `paths` below `folder`; print the unreadable ones and the number of identical files.

    InputError if any is missing or unreadable.
    """
    paths = list(dict.fromkeys(paths))
    digests: Counter[bytes] = Counter()
    errors = []
    results = read_photos([folder / path for path in paths], _digest)
    for result in tqdm(results, desc="Verifying", total=len(paths), unit="image"):
        if isinstance(result, InputError):
            errors.append(result)
            tqdm.write(str(result))
        else:
            digests[result] += 1
    copies = [count for count in digests.values() if count > 1]
    print(f"{len(paths)} images, {len(copies)} groups of identical files ({sum(copies)} files)")
    if errors:
        missing = sum(isinstance(error.__cause__, FileNotFoundError) for error in errors)
        raise InputError(
            f"{folder}: of {len(paths)} images {missing} are missing and {len(errors) - missing} unreadable "
            "(listed above): move the folder away and run prepare_data.py to unpack it again"
        )


def _digest(path: Path) -> bytes:
    """The SHA-256 digest of an image's file; InputError if it cannot be decoded."""
    with opened(path) as photo:
        to_rgb(photo)
    with naming(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
