import threading
import time

import pytest
from PIL import Image

from sop.images import reading
from sop.images.reading import read_photos
from utils.errors import InputError


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Photos of 20 x 10 pixels, of 30 x 10, and one of 100 x 10, for eight threads."""
    monkeypatch.setattr(reading, "usable_cores", lambda: 8)
    widths = [20, 30, 20, 100, 20, 30] * 4
    paths = [tmp_path / f"{i:02}.png" for i in range(len(widths))]
    for path, width in zip(paths, widths, strict=True):
        Image.new("RGB", (width, 10)).save(path)
    return dict(zip(paths, (10 * width for width in widths), strict=True))


@pytest.mark.parametrize(("most", "expected"), [(1000, 1000), (1, 1000)])  # one with more is read alone
def test_pixels_in_flight_are_limited(photos, monkeypatch, most, expected):
    monkeypatch.setattr(reading, "PIXELS_IN_FLIGHT", most)
    lock = threading.Lock()
    in_flight: list[int] = []
    seen: list[list[int]] = []

    def read(path):
        with lock:
            in_flight.append(photos[path])
            seen.append(list(in_flight))
        time.sleep(0.005)
        with lock:
            in_flight.remove(photos[path])
        return path

    assert list(read_photos(list(photos), read)) == list(photos)  # in their order
    assert max(map(sum, seen)) == expected
    assert (max(map(len, seen)) > 1) == (most > 1)


def test_small_photos_use_all_cores(photos):
    eight = threading.Barrier(8, timeout=10)  # breaks unless eight are read at once
    assert len(list(read_photos(list(photos), lambda path: eight.wait()))) == len(photos)


def test_errors_are_yielded_in_order(photos):
    paths = list(photos)
    paths[2].unlink()
    paths[3].write_text("no photo")

    def read(path):
        if path == paths[4]:
            raise InputError("refused")
        return path.name

    found = list(read_photos(paths, read))
    assert [str(result) for result in found[2:5]] == [
        f"photo {paths[2]} does not exist: check the path",
        f"photo {paths[3]} cannot be read (cannot identify image file {str(paths[3])!r}): "
        "replace it or take it out of the list",
        "refused",
    ]
    assert found[:2] + found[5:] == [path.name for path in paths[:2] + paths[5:]]
    with pytest.raises(ZeroDivisionError):
        list(read_photos(paths, lambda path: 1 // 0))
