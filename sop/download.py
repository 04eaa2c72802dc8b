"""Fetching one large file: resumed, retried, checked, and under its name only when it is whole."""

import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlparse

import requests
from tqdm import tqdm

from utils.errors import InputError
from utils.files import atomic_write

CHUNK = 1 << 20
ATTEMPTS = 5
TIMEOUT = 30  # seconds to connect, and between two pieces of an answer
TRANSIENT = {408, 425, 429, 500, 502, 503, 504}


def download(url: str, folder: Path, md5: str | None = None) -> Path:
    """Fetch `url` (http, https or file) into `folder` under its own name and return the path.

    A whole file that is already there is kept; a partial one is continued when the server says that it still has the
    same file. Connections that break and answers that say "later" are tried again with growing pauses. InputError
    when the file cannot be had, or has another MD5 than `md5`.
    """
    address = urlparse(url)
    path = folder / Path(unquote(address.path)).name
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        if address.scheme == "file":
            _copy(Path(unquote(address.path)), path, md5)
            return path
        if address.scheme not in ("http", "https"):
            raise InputError(f"{url}: only http, https and file addresses can be fetched")
        _fetch(url, part)
        _check_md5(part, md5, "deleted: run the command again")
        part.replace(path)
        _validator_file(part).unlink(missing_ok=True)
    else:
        print(f"{path} is there already")
        _check_md5(path, md5, "left as it is: delete it and run the command again")
    return path


def _copy(source: Path, path: Path, md5: str | None) -> None:
    if not source.is_file():
        raise InputError(f"file {source} does not exist: check the address")
    with source.open("rb") as content, atomic_write(path) as file, _progress(path, source.stat().st_size) as progress:
        while chunk := content.read(CHUNK):
            file.write(chunk)
            progress.update(len(chunk))
    _check_md5(path, md5, "deleted: check the file at the address")


def _progress(path: Path, total: int | None, initial: int = 0) -> tqdm:
    return tqdm(desc=path.name, total=total, initial=initial, unit="B", unit_scale=True, unit_divisor=1024)


def _check_md5(path: Path, expected: str | None, outcome: str) -> None:
    if expected is None:
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    if found != expected:
        if outcome.startswith("deleted"):
            path.unlink()
        raise InputError(
            f"{path} has the MD5 {found}, expected {expected}: it is damaged or another file, and {outcome}"
        )


def _fetch(url: str, part: Path) -> None:
    """Bring `part` to full length."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _fetch_rest(url, part)
        except (
            requests.ConnectionError,
            requests.Timeout,
            requests.exceptions.ChunkedEncodingError,
            _TryAgain,
        ) as error:
            if attempt == ATTEMPTS:
                kept = (
                    f"; {part.stat().st_size} bytes are kept in {part}, run the command again to go on"
                    if part.exists()
                    else ""
                )
                raise InputError(f"{url} could not be fetched in {ATTEMPTS} attempts ({error}){kept}") from error
            pause = 2.0 ** (attempt - 1)
            tqdm.write(f"{error}: trying again in {pause:.0f} s")
            time.sleep(pause)


class _TryAgain(Exception):
    """The server's answer may be better later."""


def _fetch_rest(url: str, part: Path) -> None:
    have, validator = _resumable(part, url)
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": str(validator)}
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
        if answer.status_code in TRANSIENT:
            raise _TryAgain(f"the server answered {answer.status_code} {answer.reason}")
        if answer.status_code == 416:  # nothing lies behind what is here, or the file has changed
            part.unlink()
            raise _TryAgain("the partial file does not fit the one on the server")
        if not answer.ok:
            raise InputError(f"{url}: the server answered {answer.status_code} {answer.reason}: check the address")
        resumed = answer.status_code == 206
        if resumed and not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            part.unlink()
            raise _TryAgain("the server sent another part than was asked for")
        have = have if resumed else 0
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length else None
        _remember_validator(part, url, answer.headers)
        try:
            with part.open("ab" if resumed else "wb") as file, _progress(part.with_suffix(""), total, have) as progress:
                for chunk in _chunks(answer):
                    file.write(chunk)
                    progress.update(len(chunk))
        except OSError as error:
            if isinstance(error, requests.RequestException):
                raise
            raise InputError(
                f"{part} could not be written: {error.strerror}; run the command again to go on"
            ) from error


def _chunks(answer: requests.Response) -> Iterator[bytes]:
    return answer.iter_content(CHUNK)


def _validator_file(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _remember_validator(part: Path, url: str, headers) -> None:
    """Note what tells whether the server still has the same file: its strong ETag, or its date."""
    etag = headers.get("ETag", "")
    validator = etag if etag.startswith('"') else headers.get("Last-Modified")
    with atomic_write(_validator_file(part)) as file:
        file.write(json.dumps({"url": url, "validator": validator}).encode())


def _resumable(part: Path, url: str) -> tuple[int, str | None]:
    """The length of a partial file that can be continued, and the server's mark of the file that it belongs to."""
    try:
        note = json.loads(_validator_file(part).read_text())
        same = note["url"] == url and note["validator"]
        return (part.stat().st_size, note["validator"]) if same else (0, None)
    except (OSError, ValueError, KeyError, TypeError):
        return 0, None
