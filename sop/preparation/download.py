"""Fetching one large file: resumed, retried, checked by its MD5, and under its name only when it is whole."""

import hashlib
import time
from pathlib import Path
from urllib.parse import unquote, urlparse

import requests
from tqdm import tqdm

from sop.preparation.archive import SOP_URL
from sop.preparation.unfinished import LATER
from utils.errors import InputError
from utils.io.atomic import atomic_write
from utils.io.lock import exclusive_lock

CHUNK = 1 << 16  # bytes read at a time; as many are lost when a connection breaks
ATTEMPTS = 5  # in a row that bring nothing; with pauses of 2, 4, 8 and 16 s half a minute
TIMEOUT = 30  # seconds to connect, and between two pieces of an answer
TRANSIENT = {408, 425, 429, 500, 502, 503, 504}


def download(url: str, folder: Path, md5: str | None = None) -> Path:
    """Fetch `url` (http, https or file) into `folder` under its own name and return the path.

    A whole file that is already there is kept; a partial one is continued. Connections that break and answers that say
    "later" are tried again with growing pauses. One process at a time fetches a file. InputError when it cannot be had
    or written, when another process is at it, and when it has another MD5 than `md5` (None: not checked), as when the
    server's file has changed since it was begun.
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
        with exclusive_lock(path.with_name(f".{path.name}.lock"), str(path), LATER):
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
    """Bring `part` to full length in as many requests as it takes."""
    failures, longest = 0, _length(part)
    while True:
        try:
            return _fetch_rest(url, part)
        except (
            requests.ConnectionError,
            requests.Timeout,
            requests.exceptions.ChunkedEncodingError,
            _TryAgain,
        ) as error:
            have = _length(part)
            failures, longest = (1, have) if have > longest else (failures + 1, longest)
            if failures == ATTEMPTS:
                advice = f"{have} bytes are kept in {part}, run the command again" if have else "check the network"
                raise InputError(
                    f"{url} could not be fetched, {ATTEMPTS} attempts in a row failed ({_root(error)}): {advice}"
                ) from error
            pause = 2.0**failures
            tqdm.write(f"{_root(error)}: trying again in {pause:.0f} s")
            time.sleep(pause)
        except requests.RequestException as error:
            raise InputError(f"{url} cannot be fetched ({error}): check the address") from error


def _root(error: BaseException) -> BaseException:
    """What an error goes back to, without the layers that passed it on."""
    return _root(error.__context__) if error.__context__ else error


class _TryAgain(Exception):
    """The server's answer may be better later."""


def _fetch_rest(url: str, part: Path) -> None:
    """One request for what `part` lacks; for all of it where the server knows no ranges."""
    have = _length(part)
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
        span, _, size = answer.headers.get("Content-Range", "").partition("/")
        if answer.status_code in TRANSIENT:
            raise _TryAgain(f"the server answered {answer.status_code} {answer.reason}")
        if answer.status_code == 416 and size == str(have):
            return  # an earlier call stopped between the last byte and the renaming
        if answer.status_code == 416 or (answer.status_code == 206 and not span.startswith(f"bytes {have}-")):
            part.unlink(missing_ok=True)
            raise _TryAgain("the file on the server is not the one that was begun")
        if not answer.ok:
            raise InputError(f"{url}: the server answered {answer.status_code} {answer.reason}: check the address")
        if answer.status_code != 206:
            have, size = 0, answer.headers.get("Content-Length", "")
        total = int(size) if size.isdecimal() else None
        with part.open("ab" if have else "wb") as file, _progress(part.with_suffix(""), total, have) as progress:
            for chunk in answer.iter_content(CHUNK):
                file.write(chunk)
                progress.update(len(chunk))
    if total not in (None, _length(part)):
        raise _TryAgain(f"{_length(part)} of {total} bytes have come")


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
