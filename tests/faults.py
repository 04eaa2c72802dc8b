"""The outside world, made to fail on order: an HTTP server that answers as a script tells it, a full disk."""

import errno
import os
import re
import resource
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

Behaviour = Callable[[BaseHTTPRequestHandler], None]
Headers = Mapping[str, str | None]  # None: not sent


class Server:
    """Each request takes the next behaviour of `script`, the last one stays; `requests` has (path, headers) of each."""

    def __init__(self) -> None:
        self.script: list[Behaviour] = []
        self.requests: list[tuple[str, dict[str, str]]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                outer.requests.append((self.path, dict(self.headers)))
                self.close_connection = True
                (outer.script.pop(0) if len(outer.script) > 1 else outer.script[0])(self)

            do_HEAD = do_GET

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    @property
    def ranges(self) -> list[str | None]:
        """The byte ranges asked for, one a request."""
        return [headers.get("Range") for _, headers in self.requests]


@contextmanager
def serving(*script: Behaviour) -> Iterator[Server]:
    server = Server()
    server.script = list(script)
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.http.shutdown()
        thread.join()
        server.http.server_close()


def send(code: int, content: bytes, headers: Headers, drop_after: int | None = None) -> Behaviour:
    """An answer with a Content-Length (unless the headers say chunked); the line may go dead in it."""

    def behave(request: BaseHTTPRequestHandler) -> None:
        request.send_response(code)
        chunked = "Transfer-Encoding" in headers
        length = {"Content-Length": None if chunked else str(len(content))}
        for name, value in {**length, **headers}.items():
            if value is not None:
                request.send_header(name, value)
        request.send_header("Connection", "close")
        request.end_headers()
        if request.command == "HEAD":
            return
        body = content[:drop_after]
        if chunked:
            half = len(body) // 2
            for piece in (body[:half], body[half:]):
                request.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            if drop_after is None:
                request.wfile.write(b"0\r\n\r\n")
        else:
            request.wfile.write(body)

    return behave


def serve(
    content: bytes, drop_after: int | None = None, ranges: bool = True, headers: Headers | None = None
) -> Behaviour:
    """A file, in ranges where asked for."""
    told = headers or {}

    def behave(request: BaseHTTPRequestHandler) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        if not (ranges and asked):
            return send(200, content, told, drop_after)(request)
        start = int(asked[1])
        if start >= len(content):
            return send(416, b"", {**told, "Content-Range": f"bytes */{len(content)}"})(request)
        span = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return send(206, content[start:], {**told, "Content-Range": span}, drop_after)(request)

    return behave


def without_pauses(monkeypatch) -> list[float]:
    """Attempts follow at once, and no proxy stands between; the pauses that would have been made are noted."""
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    monkeypatch.setenv("NO_PROXY", "*")
    return pauses


def fill_disk(monkeypatch, suffix: str, after: int) -> None:
    """From now on a file whose name ends in `suffix` takes `after` bytes, and then the disk is full."""
    really_open = Path.open

    def limited_open(path: Path, mode: str = "r", *args, **kwargs):
        file = really_open(path, mode, *args, **kwargs)
        if not path.name.endswith(suffix) or mode.startswith("r"):
            return file
        room = after

        class Limited:
            """The file, but for its `write`."""

            def __getattr__(self, name):
                return getattr(file, name)

            def __enter__(self):
                return self

            def __exit__(self, *error):
                file.close()

            def write(self, content):
                nonlocal room
                file.write(content[:room])
                if len(content) > room:
                    raise OSError(errno.ENOSPC, "No space left on device")
                room -= len(content)
                return len(content)

        return Limited()

    monkeypatch.setattr(Path, "open", limited_open)


@contextmanager
def limited(what: int, limit: int) -> Iterator[None]:
    """In the block this process has no more of a resource: RLIMIT_FSIZE, bytes of a file, or RLIMIT_AS, of memory."""
    limits = resource.getrlimit(what)
    resource.setrlimit(what, (limit, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(what, limits)


def names(folder: Path) -> list[str]:
    """What stands in a folder, hidden or not, but for lock files, which stay; nothing where there is none."""
    found = (path.name for path in folder.iterdir()) if folder.exists() else ()
    return sorted(name for name in found if not name.endswith(".lock"))


@contextmanager
def exchanged(first: Path, second: Path) -> Iterator[None]:
    """Two photos of one size and one time of change, which change places by `mv` at the end of the block."""
    size = max(path.stat().st_size for path in (first, second))
    for path in (first, second):
        path.write_bytes(path.read_bytes().ljust(size, b"\0"))  # JPEGs end before it
        os.utime(path, ns=(0, 1))
    yield
    aside = first.with_suffix(".aside")
    for source, target in ((first, aside), (second, first), (aside, second)):
        source.replace(target)
