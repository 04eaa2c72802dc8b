import hashlib
import time

import numpy as np
import pytest

import sop.preparation.download
from sop.preparation.archive import SOP_URL
from sop.preparation.download import ATTEMPTS, CHUNK, download
from tests.faults import fill_disk, names, send, serve, serving, without_pauses
from utils.errors import InputError

OLD, NEW = (np.random.default_rng(seed).bytes(5 * CHUNK + 1000) for seed in (1, 2))
KEPT = 2 * CHUNK  # of a connection that breaks amid the third chunk
HALF = KEPT + 1000
MD5, NEW_MD5 = (hashlib.md5(content).hexdigest() for content in (OLD, NEW))
CHUNKED = {"Transfer-Encoding": "chunked"}
REST = f"bytes={KEPT}-"
BROKEN = serve(OLD, drop_after=HALF)


@pytest.fixture(autouse=True)
def pauses(monkeypatch) -> list[float]:
    return without_pauses(monkeypatch)


def part_of(content: bytes, start: int, stop: int):
    return send(206, content[start:stop], {"Content-Range": f"bytes {start}-{stop - 1}/{len(content)}"})


def test_a_file_is_fetched_with_a_bar_that_shows_the_rate(tmp_path, capsys):
    with serving(serve(OLD)) as server:
        path = download(f"{server.url}/sop.zip?x=1", tmp_path / "new", MD5.upper())
    assert path == tmp_path / "new" / "sop.zip" and path.read_bytes() == OLD
    assert names(tmp_path / "new") == ["sop.zip"]
    printed = capsys.readouterr().err
    assert "sop.zip: 100%" in printed and "B/s" in printed


def test_a_complete_file_is_not_fetched_again(tmp_path):
    (tmp_path / "sop.zip").write_bytes(OLD)
    with serving(serve(NEW)) as server:
        for md5 in (None, MD5):
            assert download(f"{server.url}/sop.zip", tmp_path, md5).read_bytes() == OLD
        with pytest.raises(InputError, match=rf"sop.zip has the MD5 {MD5}, expected {NEW_MD5}.*delete it"):
            download(f"{server.url}/sop.zip", tmp_path, NEW_MD5)
    assert server.requests == [] and (tmp_path / "sop.zip").read_bytes() == OLD


@pytest.mark.parametrize(
    ("script", "ranges", "expected_pauses"),
    [
        ([serve(OLD, headers=CHUNKED)], [None], []),
        ([serve(OLD, headers={"Content-Length": None})], [None], []),
        ([send(503, b"", {}), send(429, b"", {}), send(500, b"", {}), serve(OLD)], [None] * 4, [2, 4, 8]),
        ([BROKEN, BROKEN, serve(OLD)], [None, REST, f"bytes={2 * KEPT}-"], [2, 2]),  # new bytes reset the pause
        ([BROKEN, part_of(OLD, KEPT, KEPT + 10), serve(OLD)], [None, REST, f"bytes={KEPT + 10}-"], [2, 2]),
    ],
    ids=["chunked", "length-unknown", "transient", "broken", "part-of-rest"],
)
def test_a_file_is_completed(tmp_path, pauses, script, ranges, expected_pauses):
    with serving(*script) as server:
        assert download(f"{server.url}/sop.zip", tmp_path, MD5).read_bytes() == OLD
    assert (server.ranges, pauses, names(tmp_path)) == (ranges, expected_pauses, ["sop.zip"])


def test_a_chunked_answer_that_breaks_off_is_taken_up(tmp_path):
    with serving(serve(OLD, drop_after=HALF, headers=CHUNKED), serve(OLD)) as server:
        assert download(f"{server.url}/sop.zip", tmp_path, MD5).read_bytes() == OLD
    assert len(server.requests) == 2 and server.ranges[1]


REFUSED = rf"5 attempts in a row failed \(the server answered 503 .*\): {KEPT} bytes are kept in .*run the command"
LONGER = serve(OLD, ranges=False, headers={"Content-Length": str(len(OLD) + 1)})


@pytest.mark.parametrize(
    ("script", "message", "requests", "left"),
    [
        ([BROKEN, send(503, b"", {})], REFUSED, ATTEMPTS, ["sop.zip.part"]),
        ([send(404, b"<html>", {})], r"sop.zip: the server answered 404 Not Found: check the address", 1, []),
        ([send(302, b"", {"Location": "/sop.zip"})], r"cannot be fetched \(Exceeded 30 redirects.*check the", 31, []),
        ([LONGER], r"5 attempts in a row failed .* bytes are kept", ATTEMPTS, ["sop.zip.part"]),
        ([serve(NEW)], rf"has the MD5 \w+, expected {MD5}.*it was deleted", 1, []),
    ],
    ids=["always-503", "404", "redirects", "shorter-than-told", "other-md5"],
)
def test_a_file_that_cannot_be_had(tmp_path, pauses, script, message, requests, left):
    with serving(*script) as server:
        with pytest.raises(InputError, match=message):
            download(f"{server.url}/sop.zip", tmp_path, MD5)
        assert (len(server.requests), names(tmp_path)) == (requests, left)
        assert pauses == ([2, 4, 8, 16] if requests == ATTEMPTS else [])
        server.script = [serve(OLD)]
        assert download(f"{server.url}/sop.zip", tmp_path).read_bytes()[:KEPT] == OLD[:KEPT]


def test_nobody_answers(tmp_path, pauses):
    with serving() as server:
        address = f"{server.url}/sop.zip"
    refused = r"5 attempts in a row failed \(\[Errno 111\] Connection refused\): check the network"
    with pytest.raises(InputError, match=refused):
        download(address, tmp_path)
    assert names(tmp_path) == [] and len(pauses) == ATTEMPTS - 1


def stop(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("script", "content", "ranges"),
    [
        ([serve(OLD)], OLD, [REST]),
        ([serve(NEW, ranges=False)], NEW, [REST]),
        ([part_of(NEW, 1, len(NEW)), serve(NEW)], NEW, [REST, None]),
        ([serve(NEW[:1000]), serve(NEW)], NEW, [REST, None]),
    ],
    ids=["continued", "ranges-ignored", "other-part", "416-shorter"],
)
def test_an_interrupted_download_goes_on_or_starts_anew(tmp_path, script, content, ranges):
    with serving(BROKEN) as server:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(time, "sleep", stop)
            download(f"{server.url}/sop.zip", tmp_path)
        assert (tmp_path / "sop.zip.part").read_bytes() == OLD[:KEPT]
        server.script = script
        server.requests.clear()
        assert download(f"{server.url}/sop.zip", tmp_path).read_bytes() == content
    assert server.ranges == ranges and names(tmp_path) == ["sop.zip"]


def test_a_file_that_has_changed_on_the_server_is_refused_by_its_md5(tmp_path):
    (tmp_path / "sop.zip.part").write_bytes(OLD[:KEPT])
    with serving(serve(NEW)) as server:
        with pytest.raises(InputError, match=rf"has the MD5 \w+, expected {NEW_MD5}.*it was deleted: run the command"):
            download(f"{server.url}/sop.zip", tmp_path, NEW_MD5)
        assert names(tmp_path) == []
        assert download(f"{server.url}/sop.zip", tmp_path, NEW_MD5).read_bytes() == NEW
    assert server.ranges == [REST, None]


@pytest.mark.parametrize("headers", [{}, CHUNKED], ids=["length-told", "chunked"])
def test_a_complete_file_that_lacks_its_name_gets_it(tmp_path, monkeypatch, headers):
    with serving(serve(OLD, headers=headers), serve(OLD)) as server:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(sop.preparation.download, "_check_md5", stop)
            download(f"{server.url}/sop.zip", tmp_path)
        assert names(tmp_path) == ["sop.zip.part"]
        assert download(f"{server.url}/sop.zip", tmp_path, MD5).read_bytes() == OLD
    assert server.ranges == [None, f"bytes={len(OLD)}-"] and names(tmp_path) == ["sop.zip"]


def test_a_full_disk_keeps_what_has_come(tmp_path, monkeypatch):
    with serving(serve(OLD)) as server:
        with monkeypatch.context() as patch:
            fill_disk(patch, ".part", HALF)
            told = r"could not be brought to .*sop.zip: No space left.*what has come is kept"
            with pytest.raises(InputError, match=told):
                download(f"{server.url}/sop.zip", tmp_path)
        assert (tmp_path / "sop.zip.part").read_bytes() == OLD[:HALF] and not (tmp_path / "sop.zip").exists()
        download(f"{server.url}/sop.zip", tmp_path, MD5)
    assert server.ranges == [None, f"bytes={HALF}-"]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match=r"file/below cannot be written to: Not a directory; choose another folder$"):
        download("http://127.0.0.1:1/sop.zip", tmp_path / "file" / "below")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_local_file_is_copied_completely_or_not_at_all(tmp_path, monkeypatch):
    (tmp_path / "a place").mkdir()
    (tmp_path / "a place" / "sop.zip").write_bytes(OLD)
    source, target = (tmp_path / "a place" / "sop.zip").as_uri(), tmp_path / "copy"
    with pytest.raises(InputError, match=rf"sop.zip has the MD5 \w+, expected {NEW_MD5}.*nothing was copied"):
        download(source, target, NEW_MD5)
    with monkeypatch.context() as patch:
        fill_disk(patch, ".part", HALF)
        with pytest.raises(InputError, match=r"copy/sop.zip could not be written: No space left"):
            download(source, target)
    assert names(target) == []
    assert download(source, target, MD5).read_bytes() == OLD and names(target) == ["sop.zip"]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("file:///nowhere/sop.zip", "/nowhere/sop.zip does not exist: check the address"),
        ("ftp://cs.stanford.edu/cs/cvgl/Stanford_Online_Products.zip", f"only http, .* sop_url={SOP_URL}"),
        ("http://127.0.0.1/", "names no file: give the address of the archive itself"),
        ("http://127.0.0.1/a/..", "names no file"),
        ("/data/sop.zip", "only http, https and file addresses can"),
        ("http://", "names no file"),
        ("http://127.0.0.1/%00", "names no file"),
        ("http://[::1/sop.zip", r"is no address \(Invalid IPv6 URL\)"),
        ("http:///sop.zip", r"cannot be fetched \(Invalid URL.*check the address"),
    ],
)
def test_addresses_that_cannot_be_fetched(tmp_path, url, message):
    with pytest.raises(InputError, match=message):
        download(url, tmp_path)
    assert names(tmp_path) == []
