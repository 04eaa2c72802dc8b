import hashlib

import numpy as np
import pytest

from sop.preparation.archive import SOP_URL
from sop.preparation.download import ATTEMPTS, CHUNK, download
from tests.faults import fill_disk, names, send, serve, serving, without_pauses
from utils.errors import InputError

OLD, NEW = (np.random.default_rng(seed).bytes(5 * CHUNK + 1000) for seed in (1, 2))
KEPT = 2 * CHUNK  # of a line that goes dead amid the third chunk
HALF = KEPT + 1000
MD5 = hashlib.md5(OLD).hexdigest()
CHUNKED = {"Transfer-Encoding": "chunked"}


@pytest.fixture(autouse=True)
def pauses(monkeypatch) -> list[float]:
    return without_pauses(monkeypatch)


def test_a_file_is_fetched_with_a_bar_that_shows_the_rate(tmp_path, capsys):
    with serving(serve(OLD)) as server:
        path = download(f"{server.url}/sop.zip?x=1", tmp_path / "new", MD5.upper())
    assert path == tmp_path / "new" / "sop.zip" and path.read_bytes() == OLD
    assert names(tmp_path / "new") == ["sop.zip"]
    printed = capsys.readouterr().err
    assert "sop.zip: 100%" in printed and "B/s" in printed


def test_a_whole_file_is_not_fetched_again(tmp_path):
    (tmp_path / "sop.zip").write_bytes(OLD)
    with serving(serve(NEW)) as server:
        for md5 in (None, MD5):
            assert download(f"{server.url}/sop.zip", tmp_path, md5).read_bytes() == OLD
    assert server.requests == []


def test_a_file_with_another_md5_that_was_there_is_kept(tmp_path):
    (tmp_path / "sop.zip").write_bytes(NEW)
    with pytest.raises(InputError, match=rf"sop.zip has the MD5 \w+, expected {MD5}.*delete it"):
        download("http://127.0.0.1:1/sop.zip", tmp_path, MD5)
    assert (tmp_path / "sop.zip").read_bytes() == NEW


@pytest.mark.parametrize("headers", [CHUNKED, {"Content-Length": None}], ids=["chunked", "until-the-end"])
def test_the_length_need_not_be_told(tmp_path, headers):
    with serving(serve(OLD, headers=headers)) as server:
        assert download(f"{server.url}/sop.zip", tmp_path, MD5).read_bytes() == OLD


def test_a_server_that_says_later_is_asked_again(tmp_path, pauses):
    with serving(send(503, b"", {}), send(429, b"", {}), send(500, b"", {}), serve(OLD)) as server:
        assert download(f"{server.url}/sop.zip", tmp_path, MD5).read_bytes() == OLD
    assert pauses == [2, 4, 8]


def test_a_server_that_always_says_later_is_given_up(tmp_path, pauses):
    message = rf"5 attempts in a row failed \(the server answered 503 .*\): {KEPT} bytes are kept in .*run the command"
    with serving(serve(OLD, drop_after=HALF), send(503, b"", {})) as server, pytest.raises(InputError, match=message):
        download(f"{server.url}/sop.zip", tmp_path)
    assert pauses == [2, 4, 8, 16] and len(server.requests) == ATTEMPTS
    assert (tmp_path / "sop.zip.part").read_bytes() == OLD[:KEPT]


def test_nobody_answers(tmp_path, pauses):
    with serving(serve(OLD)) as server:
        address = f"{server.url}/sop.zip"
    with pytest.raises(
        InputError, match=r"5 attempts in a row failed \(\[Errno 111\] Connection refused\): check the network"
    ):
        download(address, tmp_path)
    assert names(tmp_path) == [] and len(pauses) == ATTEMPTS - 1


def test_a_wrong_address_is_not_asked_twice(tmp_path):
    with (
        serving(send(404, b"<html>", {})) as server,
        pytest.raises(InputError, match=r"sop.zip: the server answered 404 Not Found: check the address"),
    ):
        download(f"{server.url}/sop.zip", tmp_path)
    assert len(server.requests) == 1 and names(tmp_path) == []


def test_a_redirect_without_end(tmp_path):
    with (
        serving(send(302, b"", {"Location": "/sop.zip"})) as server,
        pytest.raises(InputError, match=r"cannot be fetched \(Exceeded 30 redirects.*check the address"),
    ):
        download(f"{server.url}/sop.zip", tmp_path)


def test_fewer_bytes_than_told_are_not_a_whole_file(tmp_path):
    told = {"Content-Length": str(len(OLD) + 1)}
    with (
        serving(serve(OLD, ranges=False, headers=told)) as server,
        pytest.raises(InputError, match=r"5 attempts in a row failed .* bytes are kept"),
    ):
        download(f"{server.url}/sop.zip", tmp_path)
    assert names(tmp_path) == ["sop.zip.part"]


def test_a_fetched_file_with_another_md5_is_deleted(tmp_path):
    with serving(serve(NEW)) as server:
        with pytest.raises(InputError, match=rf"has the MD5 \w+, expected {MD5}.*it was deleted"):
            download(f"{server.url}/sop.zip", tmp_path, MD5)
        assert names(tmp_path) == []
        server.script = [serve(OLD)]
        assert download(f"{server.url}/sop.zip", tmp_path, MD5).read_bytes() == OLD
    assert server.ranges == [None, None]


def test_a_full_disk_keeps_what_has_come(tmp_path, monkeypatch):
    with serving(serve(OLD)) as server:
        with monkeypatch.context() as patch:
            fill_disk(patch, ".part", HALF)
            with pytest.raises(
                InputError, match=r"could not be brought to .*sop.zip: No space left.*what has come is kept"
            ):
                download(f"{server.url}/sop.zip", tmp_path)
        assert (tmp_path / "sop.zip.part").read_bytes() == OLD[:HALF] and not (tmp_path / "sop.zip").exists()
        download(f"{server.url}/sop.zip", tmp_path, MD5)
    assert server.ranges == [None, f"bytes={HALF}-"]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match=r"file/below cannot be written to: Not a directory; choose another folder$"):
        download("http://127.0.0.1:1/sop.zip", tmp_path / "file" / "below")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_local_file_is_copied(tmp_path):
    source = tmp_path / "a place" / "sop.zip"
    source.parent.mkdir()
    source.write_bytes(OLD)
    assert download(source.as_uri(), tmp_path / "copy", MD5).read_bytes() == OLD
    assert names(tmp_path / "copy") == ["sop.zip"]


def test_a_local_file_with_another_md5_is_not_copied(tmp_path):
    (tmp_path / "sop.zip").write_bytes(NEW)
    with pytest.raises(InputError, match=rf"sop.zip has the MD5 \w+, expected {MD5}.*nothing was copied"):
        download((tmp_path / "sop.zip").as_uri(), tmp_path / "copy", MD5)
    assert names(tmp_path / "copy") == []


def test_a_local_file_that_does_not_fit_is_not_copied(tmp_path, monkeypatch):
    (tmp_path / "sop.zip").write_bytes(OLD)
    fill_disk(monkeypatch, ".part", HALF)
    with pytest.raises(InputError, match=r"copy/sop.zip could not be written: No space left"):
        download((tmp_path / "sop.zip").as_uri(), tmp_path / "copy")
    assert names(tmp_path / "copy") == []


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
