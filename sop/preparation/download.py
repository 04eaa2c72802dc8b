"""Fetching one large file: resumed, retried, checked, and under its name only when it is whole."""

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
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

    A whole file that is already there is kept; a partial one is continued when the server says that it still has the
    same file. Connections that break and answers that say "later" are tried again with growing pauses. One process at a
    time fetches a file. InputError when it cannot be had or written, when another process is at it, and when it has
    another MD5 than `md5` (None: not checked).
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
        _note_file(part).unlink()
        raise
    part.replace(path)
    _note_file(part).unlink()


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


class _Note(NamedTuple):
    """What is known of the file that a partial one is the start of; kept beside it."""

    url: str
    validator: str | None  # the server's mark of this version: its strong ETag, or its date
    size: int | None  # bytes


def _fetch_rest(url: str, part: Path) -> None:
    """One request for what `part` lacks."""
    note = _read_note(part, url)
    have = _length(part) if note else 0
    if note and have == note.size:
        return  # stopped between the last byte and the renaming
    headers = {"Accept-Encoding": "identity"}
    if note and have:
        headers |= {"Range": f"bytes={have}-", "If-Range": str(note.validator)}
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
        if answer.status_code in TRANSIENT:
            raise _TryAgain(f"the server answered {answer.status_code} {answer.reason}")
        if answer.status_code in (206, 416):
            content_range = answer.headers.get("Content-Range", "")
            if note and note.size is None and content_range == f"bytes */{have}":
                return  # nothing is lacking: as above, but its length had not been told
            if note is None or not _continues(answer.headers, have, note):
                part.unlink(missing_ok=True)
                raise _TryAgain("the file on the server is not the one that was begun")
        elif answer.ok:
            have = 0
            part.write_bytes(b"")  # emptied before the note changes: a note never stands beside another file's bytes
            length = answer.headers.get("Content-Length")
            note = _Note(url, _validator(answer.headers), int(length) if length else None)
            _write_note(part, note)
        else:
            raise InputError(f"{url}: the server answered {answer.status_code} {answer.reason}: check the address")
        with part.open("ab") as file, _progress(part.with_suffix(""), note.size, have) as progress:
            for chunk in answer.iter_content(CHUNK):
                file.write(chunk)
                progress.update(len(chunk))
    if note.size not in (None, _length(part)):
        raise _TryAgain(f"{_length(part)} of {note.size} bytes have come")


def _continues(headers: Mapping[str, str], have: int, note: _Note) -> bool:
    """Whether a partial answer goes on where `have` bytes of the noted file end."""
    span, _, size = headers.get("Content-Range", "").partition("/")
    return (
        span.startswith(f"bytes {have}-")
        and (note.size is None or size in ("*", str(note.size)))
        and _validator(headers) in (None, note.validator)
    )


def _validator(headers: Mapping[str, str]) -> str | None:
    etag = headers.get("ETag", "")
    return etag if etag.startswith('"') else headers.get("Last-Modified")


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _note_file(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _write_note(part: Path, note: _Note) -> None:
    with atomic_write(_note_file(part)) as file:
        file.write(json.dumps(note._asdict()).encode())


def _read_note(part: Path, url: str) -> _Note | None:
    """The note beside a partial file of `url` that is whole or can be continued."""
    try:
        note = _Note(**json.loads(_note_file(part).read_text()))
    except (OSError, ValueError, TypeError):
        return None
    is_whole = note.size == _length(part)
    return note if note.url == url and part.exists() and (note.validator or is_whole) else None
