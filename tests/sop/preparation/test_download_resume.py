"""What is made of a download that broke off."""

import hashlib
import time

import pytest

import sop.preparation.download
from sop.preparation.download import download
from tests.faults import names, send, serve, serving, without_pauses
from tests.sop.preparation.test_download import CHUNKED, HALF, KEPT, MD5, NEW, OLD
from utils.errors import InputError

NEW_MD5 = hashlib.md5(NEW).hexdigest()


@pytest.fixture(autouse=True)
def pauses(monkeypatch) -> list[float]:
    return without_pauses(monkeypatch)


@pytest.fixture
def begin(tmp_path):
    """Leave what a call leaves that ends before half of the file has come."""

    def interrupted(server):
        behaviour, server.script = server.script, [serve(OLD, drop_after=HALF)]
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
    assert pauses == [2, 2]  # what came in between starts the count anew
    assert names(tmp_path) == ["sop.zip"]


def test_a_later_call_continues(tmp_path, begin):
    with serving(serve(OLD)) as server:
        begin(server)
        assert download(f"{server.url}/sop.zip", tmp_path, MD5).read_bytes() == OLD
    assert server.ranges == [f"bytes={KEPT}-"]
    assert names(tmp_path) == ["sop.zip"]


@pytest.mark.parametrize(
    ("behaviours", "ranges"),
    [
        pytest.param([serve(NEW, ranges=False)], [f"bytes={KEPT}-"], id="ranges-ignored"),
        pytest.param(
            [send(206, NEW[1:], {"Content-Range": f"bytes 1-{len(NEW) - 1}/{len(NEW)}"}), serve(NEW)],
            [f"bytes={KEPT}-", None],
            id="other-part",
        ),
        pytest.param([serve(NEW[:1000]), serve(NEW)], [f"bytes={KEPT}-", None], id="416-shorter"),
    ],
)
def test_what_does_not_go_on_is_fetched_anew(tmp_path, begin, behaviours, ranges):
    with serving(*behaviours) as server:
        begin(server)
        assert download(f"{server.url}/sop.zip", tmp_path).read_bytes() == NEW
    assert server.ranges == ranges and names(tmp_path) == ["sop.zip"]


def test_a_file_that_has_changed_on_the_server_is_refused_by_its_md5(tmp_path, begin):
    with serving(serve(NEW)) as server:
        begin(server)
        with pytest.raises(InputError, match=rf"has the MD5 \w+, expected {NEW_MD5}.*it was deleted: run the command"):
            download(f"{server.url}/sop.zip", tmp_path, NEW_MD5)
        assert names(tmp_path) == []
        assert download(f"{server.url}/sop.zip", tmp_path, NEW_MD5).read_bytes() == NEW
    assert server.ranges == [f"bytes={KEPT}-", None]


@pytest.mark.parametrize("headers", [{}, CHUNKED], ids=["length-told", "chunked"])
def test_a_whole_file_that_lacks_its_name_gets_it(tmp_path, monkeypatch, headers):
    with serving(serve(OLD, headers=headers), serve(OLD)) as server:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(sop.preparation.download, "_check_md5", stop)
            download(f"{server.url}/sop.zip", tmp_path)
        assert names(tmp_path) == ["sop.zip.part"]
        assert download(f"{server.url}/sop.zip", tmp_path, MD5).read_bytes() == OLD
    assert server.ranges == [None, f"bytes={len(OLD)}-"]
    assert names(tmp_path) == ["sop.zip"]


def test_a_chunked_answer_that_breaks_off_is_taken_up(tmp_path):
    with serving(serve(OLD, drop_after=HALF, headers=CHUNKED), serve(OLD)) as server:
        assert download(f"{server.url}/sop.zip", tmp_path, MD5).read_bytes() == OLD
    assert len(server.requests) == 2 and server.ranges[1]


def test_a_part_of_the_rest_is_followed_by_the_rest(tmp_path):
    short = {"Content-Range": f"bytes {KEPT}-{KEPT + 9}/{len(OLD)}"}
    with serving(serve(OLD, drop_after=HALF), send(206, OLD[KEPT : KEPT + 10], short), serve(OLD)) as server:
        assert download(f"{server.url}/sop.zip", tmp_path, MD5).read_bytes() == OLD
    assert server.ranges[2] == f"bytes={KEPT + 10}-"
