import hashlib
import time

import numpy as np
import pytest

import sop.download
from sop.archive import SOP_URL
from sop.download import ATTEMPTS, CHUNK, download
from tests.faults import fill_disk, names, send, serve, serving
from utils.errors import InputError

OLD, NEW = (np.random.default_rng(seed).bytes(5 * CHUNK + 1000) for seed in (1, 2))
KEPT = 2 * CHUNK  # of a line that goes dead amid the third chunk
HALF = KEPT + 1000
MD5 = hashlib.md5(OLD).hexdigest()
CHUNKED = {"Transfer-Encoding": "chunked"}


@pytest.fixture(autouse=True)
def pauses(monkeypatch) -> list[float]:
    """The pauses that would have been made."""
    made: list[float] = []
    monkeypatch.setattr(time, "sleep", made.append)
    monkeypatch.setenv("NO_PROXY", "*")
    return made


@pytest.fixture
def begin(tmp_path):
    """Leave what a call leaves that ends before half of the file has come."""

    def interrupted(server, monkeypatch_update, **options):
        behaviour, server.script = server.script, [serve(OLD, drop_after=HALF, **options)]
        with monkeypatch_update.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(time, "sleep", stop)
            download(f"{server.url}/sop.zip", tmp_path)
        server.script = behaviour
        server.requests.clear()
        assert (tmp_path / "sop.zip.part").read_bytes() == OLD[:KEPT]

    return interrupted


def stop(*_):
    raise KeyboardInterrupt


def test_a_file_is_fetched_with_a_bar_that_shows_the_rate(tmp_path, capsys):
    with serving(serve(OLD)) as server:
        path = download(f"{server.url}/sop.zip?x=1", tmp_path / "new", MD5.upper())
    assert path == tmp_path / "new" / "sop.zip" and path.read_bytes() == OLD
    assert names(tmp_path / "new") == ["sop.zip"]
    shown = capsys.readouterr().err
    assert "sop.zip: 100%" in shown and "B/s" in shown


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


def test_a_dropped_connection_is_taken_up_where_it_broke(tmp_path, pauses):
    with serving(serve(OLD, drop_after=HALF), serve(OLD, drop_after=HALF), serve(OLD)) as server:
        assert download(f"{server.url}/sop.zip", tmp_path, MD5).read_bytes() == OLD
    assert server.ranges == [None, f"bytes={KEPT}-", f"bytes={2 * KEPT}-"]
    assert server.requests[1][1]["If-Range"] == '"one"'
    assert pauses == [2, 2]  # what came in between starts the count anew
    assert names(tmp_path) == ["sop.zip"]


def test_a_later_call_continues(tmp_path, begin, monkeypatch):
    with serving(serve(OLD)) as server:
        begin(server, monkeypatch)
        download(f"{server.url}/sop.zip", tmp_path, MD5)
    assert server.ranges == [f"bytes={KEPT}-"]


def test_the_date_marks_a_file_without_a_strong_etag(tmp_path, begin, monkeypatch):
    date = {"Last-Modified": "Tue, 01 Sep 2015 00:00:00 GMT"}
    with serving(serve(OLD, etag=None, headers=date | {"ETag": 'W/"weak"'})) as server:
        begin(server, monkeypatch, etag=None, headers=date)
        download(f"{server.url}/sop.zip", tmp_path, MD5)
    assert server.ranges == [f"bytes={KEPT}-"]
    assert server.requests[0][1]["If-Range"] == date["Last-Modified"]


@pytest.mark.parametrize(
    ("behaviours", "first_options", "ranges"),
    [
        pytest.param([serve(NEW, etag='"two"')], {}, [f"bytes={KEPT}-"], id="changed"),
        pytest.param([serve(NEW, ranges=False)], {}, [f"bytes={KEPT}-"], id="ranges-ignored"),
        pytest.param([serve(NEW, etag='"two"', trusting=True)], {}, [f"bytes={KEPT}-", None], id="other-etag-in-206"),
        pytest.param(
            [serve(NEW + b"more", etag=None, trusting=True)], {}, [f"bytes={KEPT}-", None], id="other-size-in-206"
        ),
        pytest.param(
            [send(206, NEW[1:], {"Content-Range": f"bytes 1-{len(NEW) - 1}/{len(NEW)}"}), serve(NEW)],
            {},
            [f"bytes={KEPT}-", None],
            id="other-part",
        ),
        pytest.param(
            [serve(NEW[:1000], etag=None, trusting=True), serve(NEW)], {}, [f"bytes={KEPT}-", None], id="416-shorter"
        ),
        pytest.param([serve(NEW, etag='"one"')], {"etag": None}, [None], id="nothing-to-tell-it-by"),
        pytest.param([serve(NEW)], {"etag": 'W/"one"'}, [None], id="weak-etag-alone"),
    ],
)
def test_another_file_is_never_joined_to_a_begun_one(tmp_path, begin, monkeypatch, behaviours, first_options, ranges):
    with serving(*behaviours) as server:
        begin(server, monkeypatch, **first_options)
        fetched = download(f"{server.url}/sop.zip", tmp_path).read_bytes()
    assert fetched in (NEW, NEW + b"more") and server.ranges == ranges
    assert names(tmp_path) == ["sop.zip"]


def test_another_address_is_not_joined_to_a_begun_one(tmp_path, begin, monkeypatch):
    with serving(serve(NEW)) as server:
        begin(server, monkeypatch)
        assert download(f"{server.url}/other/sop.zip", tmp_path).read_bytes() == NEW
    assert server.ranges == [None]


def test_two_versions_in_one_call_end_in_the_second(tmp_path):
    with serving(serve(OLD, drop_after=HALF), serve(NEW, etag='"two"', trusting=True)) as server:
        assert download(f"{server.url}/sop.zip", tmp_path).read_bytes() == NEW
    assert server.ranges == [None, f"bytes={KEPT}-", None]


@pytest.mark.parametrize("headers", [{}, CHUNKED], ids=["length-told", "chunked"])
def test_a_whole_file_that_lacks_its_name_gets_it(tmp_path, monkeypatch, headers):
    with serving(serve(OLD, headers=headers), serve(OLD)) as server:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(sop.download, "_check_md5", stop)
            download(f"{server.url}/sop.zip", tmp_path)
        assert names(tmp_path) == ["sop.zip.part", "sop.zip.part.json"]
        assert download(f"{server.url}/sop.zip", tmp_path, MD5).read_bytes() == OLD
    assert server.ranges == ([None, f"bytes={len(OLD)}-"] if headers else [None])
    assert names(tmp_path) == ["sop.zip"]


@pytest.mark.parametrize("headers", [CHUNKED, {"Content-Length": None}], ids=["chunked", "until-the-end"])
def test_the_length_need_not_be_told(tmp_path, headers):
    with serving(serve(OLD, headers=headers)) as server:
        assert download(f"{server.url}/sop.zip", tmp_path, MD5).read_bytes() == OLD


def test_a_chunked_answer_that_breaks_off_is_taken_up(tmp_path):
    with serving(serve(OLD, drop_after=HALF, headers=CHUNKED), serve(OLD)) as server:
        assert download(f"{server.url}/sop.zip", tmp_path, MD5).read_bytes() == OLD
    assert len(server.requests) == 2 and server.ranges[1]


def test_a_server_that_says_later_is_asked_again(tmp_path, pauses):
    with serving(send(503, b"", {}), send(429, b"", {}), send(500, b"", {}), serve(OLD)) as server:
        assert download(f"{server.url}/sop.zip", tmp_path, MD5).read_bytes() == OLD
    assert pauses == [2, 4, 8]


def test_a_server_that_always_says_later_is_given_up(tmp_path, begin, monkeypatch, pauses):
    with serving(send(503, b"", {})) as server:
        begin(server, monkeypatch)
        with pytest.raises(InputError, match=rf"5 attempts in a row.*503.*{KEPT} bytes are kept.*run the command"):
            download(f"{server.url}/sop.zip", tmp_path)
    assert pauses == [2, 4, 8, 16] and len(server.requests) == ATTEMPTS
    assert (tmp_path / "sop.zip.part").read_bytes() == OLD[:KEPT]


def test_nobody_answers(tmp_path, pauses):
    with serving(serve(OLD)) as server:
        address = f"{server.url}/sop.zip"
    with pytest.raises(InputError, match=r"5 attempts in a row failed \(.*refused"):
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
    assert names(tmp_path) == ["sop.zip.part", "sop.zip.part.json"]


def test_a_part_of_the_rest_is_followed_by_the_rest(tmp_path):
    short = {"Content-Range": f"bytes {KEPT}-{KEPT + 9}/{len(OLD)}", "ETag": '"one"'}
    with serving(serve(OLD, drop_after=HALF), send(206, OLD[KEPT : KEPT + 10], short), serve(OLD)) as server:
        assert download(f"{server.url}/sop.zip", tmp_path, MD5).read_bytes() == OLD
    assert server.ranges[2] == f"bytes={KEPT + 10}-"


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
            with pytest.raises(InputError, match=r"sop.zip could not be written: No space left.*what has come is kept"):
                download(f"{server.url}/sop.zip", tmp_path)
        assert (tmp_path / "sop.zip.part").read_bytes() == OLD[:HALF] and not (tmp_path / "sop.zip").exists()
        download(f"{server.url}/sop.zip", tmp_path, MD5)
    assert server.ranges == [None, f"bytes={HALF}-"]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match=r"sop.zip could not be written: (File exists|Not a directory)"):
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
    assert names(tmp_path) == ["sop.zip"]


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
        ("http:///sop.zip", r"cannot be fetched \(Invalid URL.*check the address"),
    ],
)
def test_addresses_that_cannot_be_fetched(tmp_path, url, message):
    with pytest.raises(InputError, match=message):
        download(url, tmp_path)
    assert names(tmp_path) == []
