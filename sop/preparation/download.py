"""Download of one large file: resumed, retried, MD5-checked, and under its name only when it is complete."""

import hashlib
import time
from pathlib import Path
from urllib.parse import unquote, urlparse

import requests
from tqdm import tqdm

from sop.preparation.archive import SOP_URL
from sop.preparation.atomic_folder import BUSY_ADVICE
from utils.errors import InputError
from utils.io.atomic import atomic_write
from utils.io.lock import exclusive_lock

CHUNK = 1 << 16  # bytes read at a time; a broken connection loses at most as many
ATTEMPTS = 5  # in a row without a new byte, with pauses of 2, 4, 8 and 16 s between them
TIMEOUT = 30  # seconds to connect, and between two chunks
TRANSIENT = {408, 425, 429, 500, 502, 503, 504}


def download(url: str, folder: Path, md5: str | None = None) -> Path:
    """Download `url` (http, https or file) into `folder` under its own name and return the path.

    A complete file is kept, a partial one is continued. Broken connections and transient errors of the server are tried
    again after growing pauses. InputError if the file cannot be downloaded or written, if another process downloads it,
    and if its MD5 is not `md5` (None: not checked), as when the server's file has changed since the download began.
    """
    try:
        address = urlparse(url)
    except ValueError as error:
        raise InputError(f"{url} is no address ({error})") from error
    source = Path(unquote(address.path))
    path = folder / source.name
    if source.name in ("", "..") or "\0" in source.name:
        raise InputError(f"{url} names no file: give the address of the archive itself")
    if address.scheme not in ("http", "https", "file"):
        raise InputError(
            f"{url} cannot be fetched: only http, https and file addresses can; SOP's is sop_url={SOP_URL}"
        )
    try:
        with exclusive_lock(path.with_name(f".{path.name}.lock"), str(path), BUSY_ADVICE):
            if path.exists():
                print(f"{path} is there already")
                _check_md5(path, md5, "delete it and run the command again")
            elif address.scheme == "file":
                _copy(source, path, md5)
            else:
                _fetch_whole(url, path, md5)
    except OSError as error:
        raise InputError(
            f"{url} could not be brought to {path}: {error.strerror or error}; what has come is kept, "
            "run the command again to go on"
        ) from error
    return path


def _copy(source: Path, path: Path, md5: str | None) -> None:
    if not source.is_file():
        raise InputError(f"file {source} does not exist: check the address")
    _check_md5(source, md5, "check the file and the address; nothing was copied")
    with source.open("rb") as content, atomic_write(path) as file, _progress(path, source.stat().st_size) as progress:
        while chunk := content.read(CHUNK):
            file.write(chunk)
            progress.update(len(chunk))


def _progress(path: Path, total: int | None, initial: int = 0) -> tqdm:
    return tqdm(desc=path.name, total=total, initial=initial, unit="B", unit_scale=True, unit_divisor=1024)


def _check_md5(path: Path, expected: str | None, advice: str) -> None:
    if expected is None:
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    if found != expected.lower():
        raise InputError(f"{path} has the MD5 {found}, expected {expected}: it is damaged or another file; {advice}")


def _fetch_whole(url: str, path: Path, md5: str | None) -> None:
    part = path.with_name(path.name + ".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    _fetch(url, part)
    try:
        _check_md5(part, md5, "it was deleted: run the command again, or set sop_md5 if the file has a newer version")
    except InputError:
        part.unlink()
        raise
    part.replace(path)


def _fetch(url: str, part: Path) -> None:
    """Complete `part`, in as many requests as it takes."""
    failures, longest = 0, _size(part)
    while True:
        try:
            return _fetch_rest(url, part)
        except (
            requests.ConnectionError,
            requests.Timeout,
            requests.exceptions.ChunkedEncodingError,
            _TransientError,
        ) as error:
            received = _size(part)
            failures, longest = (1, received) if received > longest else (failures + 1, longest)
            if failures == ATTEMPTS:
                advice = (
                    f"{received} bytes are kept in {part}, run the command again" if received else "check the network"
                )
                raise InputError(
                    f"{url} could not be fetched, {ATTEMPTS} attempts in a row failed ({_root_cause(error)}): {advice}"
                ) from error
            pause = 2.0**failures
            tqdm.write(f"{_root_cause(error)}: trying again in {pause:.0f} s")
            time.sleep(pause)
        except requests.RequestException as error:
            raise InputError(f"{url} cannot be fetched ({error}): check the address") from error


def _root_cause(error: BaseException) -> BaseException:
    """The first error of a chain."""
    return _root_cause(error.__context__) if error.__context__ else error


class _TransientError(Exception):
    """The same request may succeed later."""


def _fetch_rest(url: str, part: Path) -> None:
    """Request the bytes that `part` lacks, or all of them if the server does not support ranges."""
    received = _size(part)
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={received}-"} if received else {})
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
        byte_range, _, size = answer.headers.get("Content-Range", "").partition("/")
        if answer.status_code in TRANSIENT:
            raise _TransientError(f"the server answered {answer.status_code} {answer.reason}")
        if answer.status_code == 416 and size == str(received):
            return  # an earlier call stopped between the last byte and the renaming
        if answer.status_code == 416 or (answer.status_code == 206 and not byte_range.startswith(f"bytes {received}-")):
            part.unlink(missing_ok=True)
            raise _TransientError("the file on the server is not the one that was begun")
        if not answer.ok:
            raise InputError(f"{url}: the server answered {answer.status_code} {answer.reason}: check the address")
        if answer.status_code != 206:
            received, size = 0, answer.headers.get("Content-Length", "")
        total = int(size) if size.isdecimal() else None
        with (
            part.open("ab" if received else "wb") as file,
            _progress(part.with_suffix(""), total, received) as progress,
        ):
            for chunk in answer.iter_content(CHUNK):
                file.write(chunk)
                progress.update(len(chunk))
    if total not in (None, _size(part)):
        raise _TransientError(f"{_size(part)} of {total} bytes have come")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
