"""Cached test images are the loader's own, whoever else makes, changes or deletes caches meanwhile."""

import os
import re
import resource
import shutil
import signal
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import eval_global
from sop.dataset import ImageSet
from sop.images.transforms import Resizing
from tests.faults import exchanged, limited, names
from tests.processes import exit_codes
from tests.test_ingredient import loaders_of
from utils.errors import InputError
from utils.io.lock import exclusive_lock


def batches(loader):
    return [torch.cat(parts) for parts in zip(*loader, strict=True)]


def query(folder: Path, cache: Path, **settings) -> list[torch.Tensor]:
    return batches(loaders_of(folder, image_cache=cache, **settings).query)


def cache_in(folder: Path) -> Path:
    """The only file of squares in a folder of caches."""
    (file,) = folder.glob("*/squares.npy")
    assert re.fullmatch(r"test\.txt\.[0-9a-f]{12}", file.parent.name)
    return file


@pytest.fixture
def decoded(monkeypatch) -> list:
    """The photos decoded from now on, in this process."""
    seen, get = [], ImageSet.__getitem__

    def note(images, item):
        seen.append(item)
        return get(images, item)

    monkeypatch.setattr(ImageSet, "__getitem__", note)
    return seen


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("decode", ["exact", "fast"])
@pytest.mark.parametrize(
    "resizing", [{"crop_size": 28}, {}, {"resizing": Resizing("bicubic", 0.9)}]
)  # squares of 32, 37 and 36
def test_equals_uncached_batches(photos, tmp_path, capsys, workers, decode, resizing):
    settings = {"num_workers": workers, "decode": decode, "test_file": ["test.txt", "train.txt"]} | resizing
    plain, cached = loaders_of(photos, **settings), loaders_of(photos, **settings, image_cache=tmp_path / "new" / "dir")
    for name in ("query", "gallery", "query_train", "query"):
        for expected, got in zip(batches(getattr(plain, name)), batches(getattr(cached, name)), strict=True):
            assert torch.equal(expected, got)
    assert [name.partition(".txt.")[0] for name in names(tmp_path / "new" / "dir")] == ["test", "train"]
    assert capsys.readouterr().out.count("is made\n") == 2


def test_squares_are_an_array_for_numpy(photos, tmp_path):
    loader = loaders_of(photos, image_cache=tmp_path).query
    assert not names(tmp_path)
    batches(loader)
    squares = np.load(cache_in(tmp_path))
    assert (squares.shape, squares.dtype) == ((20, 3, 37, 37), np.uint8)
    assert np.array_equal(squares[4], loader.dataset.photos[4][0])


def change_photo(folder):
    shutil.copyfile(folder / "toy_final/6_1.JPG", folder / "toy_final/9_3.JPG")


def touch_photo(folder):
    os.utime(folder / "toy_final/9_3.JPG", ns=(0, 1))


def change_list(folder):
    lines = (folder / "test.txt").read_text().splitlines()
    (folder / "test.txt").write_text("\n".join(lines[::-1]))


def shorten_list(folder):
    (folder / "test.txt").write_text("\n".join((folder / "test.txt").read_text().splitlines()[:7]))


@pytest.mark.parametrize("change", [change_photo, touch_photo, change_list, shorten_list, None])
def test_changed_photos_or_list_make_a_new_cache(folder, tmp_path, change, capsys):
    cache = tmp_path / "cache"
    with nullcontext() if change else exchanged(folder / "toy_final/6_1.JPG", folder / "toy_final/9_3.JPG"):
        before = query(folder, cache)[0]
    old = cache_in(cache).parent
    if change:
        change(folder)
    capsys.readouterr()
    after = query(folder, cache)[0]
    assert torch.equal(after, batches(loaders_of(folder).query)[0])
    assert torch.equal(after, before) == (change is touch_photo)
    told = f"image caches of test.txt for other photos or settings in {cache}: 1, 0.0 GB; those that no run needs"
    assert told in capsys.readouterr().out
    shutil.rmtree(old)
    cache_in(cache)


def test_caches_of_several_settings_and_sets(photos, folder, tmp_path, decoded, capsys):
    change_photo(folder)
    (tmp_path / "cache" / "other.test.txt.0123456789ab").mkdir(parents=True)
    resizings = [Resizing("bicubic"), Resizing(crop_fraction=1), Resizing(keeps_aspect=True)]
    changes = [{}, {"crop_size": 28}, {"decode": "fast"}, *({"resizing": resizing} for resizing in resizings)]
    runs = [*((photos, settings) for settings in changes), (folder, {})]
    for _ in range(2):
        for data, settings in runs:
            got = query(data, tmp_path / "cache", **settings)
            made = len(decoded)
            assert torch.equal(got[0], batches(loaders_of(data, **settings).query)[0])
            del decoded[made:]
    assert len(decoded) == 7 * 20
    printed = capsys.readouterr()
    assert printed.out.count("is made\n") == printed.err.count("Caching images: 100%") == 7
    assert re.findall(r"other photos or settings in \S+: (\d), 0\.0 GB", printed.out) == list("123456")


def test_evaluation(tiny, observed, tmp_path):
    recalls = []
    for cache in (None, str(tmp_path / "cache"), str(tmp_path / "cache")):
        run = observed(eval_global.ex, **tiny(temp_dir=tmp_path / "out", dataset={"image_cache": cache}))
        recalls.append(run.info["recall"])
    assert recalls[0] == recalls[1] == recalls[2]
    assert "is made" not in run.printed


def cut(cache: Path) -> None:
    os.truncate(cache, 1000)


def overwrite_header(cache: Path) -> None:
    with cache.open("r+b") as file:
        file.write(bytes(16))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("damage", [cut, overwrite_header, Path.unlink])
def test_a_changed_file_is_replaced_at_the_next_pass(photos, tmp_path, capsys, workers, damage):
    loader = loaders_of(photos, image_cache=tmp_path, num_workers=workers).query
    loader.dataset.prepare(8, 0)
    capsys.readouterr()
    damage(cache_in(tmp_path))
    with pytest.raises(InputError, match=r"image cache \S+ is gone or damaged by now: run the command again"):
        next(iter(DataLoader(loader.dataset, 8, num_workers=workers)))
    assert torch.equal(batches(loader)[0], batches(loaders_of(photos).query)[0])
    assert capsys.readouterr().out == f"image cache {cache_in(tmp_path).parent} is made\n"


def test_photos_are_decoded_where_no_cache_can_be_written(photos, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    expected = batches(loaders_of(photos).query)[0]
    assert torch.equal(query(photos, tmp_path / "file")[0], expected)
    told = rf"images are not cached: {tmp_path}/file/test\.txt\.\w+ cannot be written to: Not a directory"
    assert re.match(told, capsys.readouterr().out)
    query(photos, tmp_path)
    shutil.rmtree(cache := cache_in(tmp_path).parent)
    capsys.readouterr()
    with exclusive_lock(cache / ".lock", "", ""):
        assert torch.equal(query(photos, tmp_path)[0], expected)
    told = rf"images are not cached: {cache} is being written by process {os.getpid()} on .*: photos are decoded"
    assert re.match(told, capsys.readouterr().out)


def test_an_unreadable_photo_keeps_the_old_cache(folder, tmp_path):
    cache = tmp_path / "cache"
    query(folder, cache)
    before = cache_in(cache).read_bytes()
    (folder / "toy_final/9_3.JPG").write_bytes(b"no photo")
    with pytest.raises(InputError, match=r"photo .*9_3\.JPG cannot be read"):
        query(folder, cache)
    (folder / "toy_final/9_3.JPG").unlink()
    with pytest.raises(InputError, match=r"photo .*9_3\.JPG cannot be read \(No such file or directory\)"):
        query(folder, cache)
    assert before in [file.read_bytes() for file in cache.glob("*/squares.npy")]


def test_a_disk_that_fills_up(photos, tmp_path):
    told = r"test\.txt\.\S+ could not be written to: File too large"
    with limited(resource.RLIMIT_FSIZE, 60_000), pytest.raises(InputError, match=told):  # the squares have 82,140 bytes
        query(photos, tmp_path)


def test_two_processes_go_on_after_a_killed_one(photos, tmp_path, monkeypatch, decoded):
    monkeypatch.setattr("utils.store.store.CHUNK_BYTES", 8 * 3 * 37 * 37)  # a batch
    get = ImageSet.__getitem__

    def get_until_killed(images, item):
        return os.kill(os.getpid(), signal.SIGKILL) if item == 13 else get(images, item)

    def make(is_killed: bool) -> None:
        if is_killed:
            monkeypatch.setattr(ImageSet, "__getitem__", get_until_killed)
        query(photos, tmp_path)

    assert exit_codes(partial(make, True)) == [-signal.SIGKILL]
    shutil.copytree(tmp_path, tmp_path / "copy")
    assert torch.equal(query(photos, tmp_path / "copy")[0], batches(loaders_of(photos).query)[0])
    assert decoded[:12] == list(range(8, 20))
    del decoded[:]
    assert exit_codes(*[partial(make, False)] * 2) == [0, 0]
    query(photos, tmp_path)
    assert not decoded
