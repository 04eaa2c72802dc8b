"""What is made of a download that broke off."""

import time
from pathlib import Path

import pytest

import sop.preparation.download
from sop.preparation.download import download
from tests.faults import names, send, serve, serving, without_pauses
from tests.sop.preparation.test_download import CHUNKED, HALF, KEPT, MD5, NEW, OLD


@pytest.fixture(autouse=True)
def pauses(monkeypatch) -> list[float]:
    return without_pauses(monkeypatch)


@pytest.fixture
def begin(tmp_path):
    """Leave what a call leaves that ends before half of the file has come."""

    def interrupted(server, **options):
        behaviour, server.script = server.script, [serve(OLD, drop_after=HALF, **options)]
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(time, "sleep", stop)
            download(f"{server.url}/sop.zip", tmp_path)
        server.script = behaviour
        server.requests.clear()
        assert (tmp_path / "sop.zip.part").read_bytes() == OLD[:KEPT]

    return interrupted


def stop(*_):
    raise KeyboardInterrupt


def test_a_dropped_connection_is_taken_up_where_it_broke(tmp_path, pauses):
    with serving(serve(OLD, drop_after=HALF), serve(OLD, drop_after=HALF), serve(OLD)) as server:
        assert download(f"{server.url}/sop.zip", tmp_path, MD5).read_bytes() == OLD
    assert server.ranges == [None, f"bytes={KEPT}-", f"bytes={2 * KEPT}-"]
    assert server.requests[1][1]["If-Range"] == '"one"'
    assert pauses == [2, 2]  # what came in between starts the count anew
    assert names(tmp_path) == ["sop.zip"]


def test_a_later_call_continues(tmp_path, begin):
    with serving(serve(OLD)) as server:
        begin(server)
        download(f"{server.url}/sop.zip", tmp_path, MD5)
    assert server.ranges == [f"bytes={KEPT}-"]


def test_the_date_marks_a_file_without_a_strong_etag(tmp_path, begin):
    date = {"Last-Modified": "Tue, 01 Sep 2015 00:00:00 GMT"}
    with serving(serve(OLD, etag=None, headers=date | {"ETag": 'W/"weak"'})) as server:
        begin(server, etag=None, headers=date)
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
def test_another_file_is_never_joined_to_a_begun_one(tmp_path, begin, behaviours, first_options, ranges):
    with serving(*behaviours) as server:
        begin(server, **first_options)
        fetched = download(f"{server.url}/sop.zip", tmp_path).read_bytes()
    assert fetched in (NEW, NEW + b"more") and server.ranges == ranges
    assert names(tmp_path) == ["sop.zip"]


def test_stopping_amid_the_change_to_another_file_does_not_join_them(tmp_path, begin, monkeypatch):
    with serving(serve(NEW, etag='"two"')) as server:
        begin(server)
        for where in ((Path, "write_bytes"), (sop.preparation.download, "_write_note")):
            with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr(*where, stop)
                download(f"{server.url}/sop.zip", tmp_path)
        assert download(f"{server.url}/sop.zip", tmp_path).read_bytes() == NEW


def test_another_address_is_not_joined_to_a_begun_one(tmp_path, begin):
    with serving(serve(NEW)) as server:
        begin(server)
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
            patch.setattr(sop.preparation.download, "_check_md5", stop)
            download(f"{server.url}/sop.zip", tmp_path)
        assert names(tmp_path) == ["sop.zip.part", "sop.zip.part.json"]
        assert download(f"{server.url}/sop.zip", tmp_path, MD5).read_bytes() == OLD
    assert server.ranges == ([None, f"bytes={len(OLD)}-"] if headers else [None])
    assert names(tmp_path) == ["sop.zip"]


def test_a_chunked_answer_that_breaks_off_is_taken_up(tmp_path):
    with serving(serve(OLD, drop_after=HALF, headers=CHUNKED), serve(OLD)) as server:
        assert download(f"{server.url}/sop.zip", tmp_path, MD5).read_bytes() == OLD
    assert len(server.requests) == 2 and server.ranges[1]


def test_a_part_of_the_rest_is_followed_by_the_rest(tmp_path):
    short = {"Content-Range": f"bytes {KEPT}-{KEPT + 9}/{len(OLD)}", "ETag": '"one"'}
    with serving(serve(OLD, drop_after=HALF), send(206, OLD[KEPT : KEPT + 10], short), serve(OLD)) as server:
        assert download(f"{server.url}/sop.zip", tmp_path, MD5).read_bytes() == OLD
    assert server.ranges[2] == f"bytes={KEPT + 10}-"
