"""The service answers over HTTP."""

import json
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from importlib import import_module
from threading import Event, Thread
from time import monotonic, sleep

import pytest

from rrt.index import update

uvicorn = pytest.importorskip("uvicorn")
pytest.importorskip("fastapi")
SECONDS = 20  # no answer takes as long


@pytest.fixture(scope="module")
def service(reranker, photos, tmp_path_factory):
    """The module of the service, over seven photos."""
    folder = tmp_path_factory.mktemp("service") / "index"
    update(folder, sorted(photos.glob("toy_final/*.JPG"))[:7], reranker)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INDEX", str(folder))
        return import_module("docs.integrations.service")


@pytest.fixture(scope="module")
def port(service):
    """Of a server, which ends after the tests."""
    server = uvicorn.Server(uvicorn.Config(service.app, port=0, log_level="warning"))
    thread = Thread(target=server.run, daemon=True)
    thread.start()
    deadline = monotonic() + SECONDS
    while not server.started:
        assert thread.is_alive() and monotonic() < deadline
        sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join(SECONDS)
    assert not thread.is_alive()


def answer(port, method, path, body=None):
    connection = HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    try:
        connection.request(method, path, body)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def test_ten_clients_at_once(service, port, paths):
    queries = [*paths, *paths][:10]
    with ThreadPoolExecutor(10) as clients:
        asked = [clients.submit(answer, port, "POST", "/search?top=3", path.read_bytes()) for path in queries]
        answers = [each.result(SECONDS) for each in asked]
    index = service.index
    for path, (status, results) in zip(queries, answers, strict=True):
        (found,) = index.search(index.reranker.embed(path), 3, index.num_candidates())
        assert status == 200 and len(results) == 3
        assert [(each["photo"], each["score"], each["probability"]) for each in results] == [
            (each.photo, each.score, each.probability) for each in found
        ]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_has_a_limit(port, chunked):
    parts = [bytes(10_000_000), b"1"]  # of chunks no header tells the sum
    status, said = answer(port, "POST", "/search", iter(parts) if chunked else b"".join(parts))
    assert status == 413 and said == {"detail": "the photo has more than 10 MB: make it smaller"}


def test_what_is_no_photo(port):
    status, said = answer(port, "POST", "/search", b"no photo")
    assert status == 400
    assert said["detail"].startswith("image 0: photo sent cannot be read (cannot identify image file 'sent')")
    assert answer(port, "POST", "/search?top=0", b"")[0] == 422


def test_health_while_it_computes(service, port, monkeypatch):
    waiting, go_on = Event(), Event()

    def embed(path):
        waiting.set()
        assert go_on.wait(SECONDS)
        raise service.InputError("enough")

    monkeypatch.setattr(service.index.reranker, "embed", embed)
    with ThreadPoolExecutor(1) as client:
        asked = client.submit(answer, port, "POST", "/search", b"photo")
        assert waiting.wait(SECONDS)
        assert answer(port, "GET", "/health") == (200, {"status": "ok"})
        go_on.set()
        assert asked.result(SECONDS) == (400, {"detail": "enough"})
