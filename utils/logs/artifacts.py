"""Whether a run folder holds the artifacts that its run.json lists, as they were."""

import hashlib
from pathlib import Path

from utils.logs.files import RunFiles
from utils.logs.values import nested

LARGEST_CHECKED = 64_000_000  # bytes: their MD5 sum takes a tenth of a second


def check_artifacts(files: RunFiles, entry: dict, info: dict) -> None:
    """Note listed artifacts that are missing, and those that differ from each MD5 sum noted for a file of their name.

    A large file's sum is not checked.
    """
    artifacts, noted = nested(entry, "artifacts"), nested(info, "md5")
    sums: dict[str, list[object]] = {}
    for path, digest in noted.items() if isinstance(noted, dict) else ():
        sums.setdefault(Path(path).name, []).append(digest)
    for name in artifacts if isinstance(artifacts, list) else ():
        if isinstance(name, str):
            problem = _problem(files.folder / name, sums.get(Path(name).name))
            if problem:
                files.note(f"artifact {name} {problem}")


def _problem(artifact: Path, sums: list[object] | None) -> str | None:
    try:
        if not artifact.is_file():
            return "is missing"
        if sums and artifact.stat().st_size <= LARGEST_CHECKED:
            with artifact.open("rb") as file:
                if hashlib.file_digest(file, "md5").hexdigest() not in sums:
                    return "is not the file whose MD5 sum info.json names"
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    return None
