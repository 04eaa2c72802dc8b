"""Image caches that are damaged, deleted, or cannot be made."""

import os
import resource
import shutil
import signal
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from sop.dataset import ImageSet
from sop.images.image_cache import DIGEST_BYTES
from tests.faults import limited, names
from tests.processes import exit_codes
from tests.sop.images.test_image_cache import batches, cache_in, touch_photo
from tests.test_ingredient import loaders_of
from utils.errors import InputError


def cut(cache: Path) -> None:
    os.truncate(cache, 1000)


def overwrite_sum(cache: Path) -> None:
    with cache.open("r+b") as file:
        file.write(bytes(DIGEST_BYTES))


def replace(cache: Path) -> None:
    (cache.parent / "new").write_bytes(bytes(cache.stat().st_size))
    (cache.parent / "new").replace(cache)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("damage", [cut, overwrite_sum, replace, Path.unlink])
def test_a_changed_file_is_replaced_at_the_next_pass(photos, tmp_path, capsys, workers, damage):
    loader = loaders_of(photos, image_cache=tmp_path, num_workers=workers).query
    expected = batches(loader)[0]
    capsys.readouterr()
    damage(cache_in(tmp_path))
    assert torch.equal(batches(loader)[0], expected)
    anew = "" if damage is Path.unlink else " anew: it was damaged"
    assert capsys.readouterr().out == f"image cache {cache_in(tmp_path)} (0.0 GB) is made{anew}\n"


def test_a_flipped_bit(photos, tmp_path):
    batches(loaders_of(photos, image_cache=tmp_path).query)
    cache = cache_in(tmp_path)
    content = bytearray(cache.read_bytes())
    content[DIGEST_BYTES + 7 * 3 * 37 * 37 + 1] ^= 1
    cache.write_bytes(content)
    with pytest.raises(InputError, match=rf"image cache {cache} is damaged at photo toy_final/7_3\.JPG: delete it"):
        batches(loaders_of(photos, image_cache=tmp_path).query)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("damage", [cut, overwrite_sum, replace, Path.unlink])
def test_opening_another_file_than_prepared(photos, tmp_path, workers, damage):
    images = loaders_of(photos, image_cache=tmp_path).query.dataset
    images.prepare(8, 0)
    damage(images.file)
    with pytest.raises(
        InputError, match=r"image cache \S+\.images is gone, or is another file by now: run the command"
    ):
        next(iter(DataLoader(images, 8, num_workers=workers)))


def test_unreadable_or_unwritable_file(photos, tmp_path):
    images = loaders_of(photos, image_cache=tmp_path).query.dataset
    images.prepare(8, 0)
    images.file.unlink()
    images.file.mkdir()
    with pytest.raises(
        InputError, match=r"image cache \S+ cannot be read: Is a directory; choose another folder for da"
    ):
        images.prepare(8, 0)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"image cache \S+ cannot be read: Not a directory; choose another folder for"):
        batches(loaders_of(photos, image_cache=tmp_path / "file").query)


def test_unreadable_photo_keeps_the_old_file(folder, tmp_path):
    cache = tmp_path / "cache"
    batches(loaders_of(folder, image_cache=cache).query)
    before = cache_in(cache).read_bytes()
    (folder / "toy_final/9_3.JPG").write_bytes(b"no photo")
    with pytest.raises(InputError, match=r"photo .*9_3\.JPG cannot be read"):
        batches(loaders_of(folder, image_cache=cache).query)
    (folder / "toy_final/9_3.JPG").unlink()
    with pytest.raises(InputError, match=r"photo .*9_3\.JPG cannot be read \(No such file or directory\)"):
        batches(loaders_of(folder, image_cache=cache).query)
    assert cache_in(cache).read_bytes() == before


def test_photos_change_during_prepare(folder, tmp_path, monkeypatch):
    get = ImageSet.__getitem__
    monkeypatch.setattr(ImageSet, "__getitem__", lambda images, item: touch_photo(folder) or get(images, item))
    with pytest.raises(InputError, match=r"photos in \S+ have changed while they were cached: run the command again"):
        batches(loaders_of(folder, image_cache=tmp_path / "cache").query)
    assert names(tmp_path / "cache") == []


def test_insufficient_disk_space(photos, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=20 * (3 * 37 * 37 + 4) + DIGEST_BYTES - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(
        InputError, match=r"image cache test\.txt\.\S+\.images in \S+/cache needs \S+ GB, but \S+ GB are"
    ):
        batches(loaders_of(photos, image_cache=tmp_path / "cache").query)
    assert names(tmp_path) == []


def test_disk_fills_up_during_prepare(photos, tmp_path):
    told = r"test\.txt\.\S+\.images could not be written: File too large"
    with limited(resource.RLIMIT_FSIZE, 60_000), pytest.raises(InputError, match=told):  # the cache has 82,252 bytes
        batches(loaders_of(photos, image_cache=tmp_path).query)
    assert names(tmp_path) == []


def test_two_processes_prepare_at_once_after_a_killed_one(photos, tmp_path, monkeypatch):
    get = ImageSet.__getitem__

    def get_until_killed(images, item):
        return os.kill(os.getpid(), signal.SIGKILL) if item == 13 else get(images, item)

    def make(is_killed: bool) -> None:
        if is_killed:
            monkeypatch.setattr(ImageSet, "__getitem__", get_until_killed)
        batches(loaders_of(photos, image_cache=tmp_path / "cache").query)

    assert exit_codes(partial(make, True)) == [-signal.SIGKILL]
    assert [name[-5:] for name in names(tmp_path / "cache")] == [".part"]
    assert exit_codes(*[partial(make, False)] * 2) == [0, 0]
    assert cache_in(tmp_path / "cache")
    got = batches(loaders_of(photos, image_cache=tmp_path / "cache").query)
    assert torch.equal(got[0], batches(loaders_of(photos).query)[0])
