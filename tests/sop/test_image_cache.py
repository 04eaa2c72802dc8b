"""Cached test images are the loader's own, and are made anew when anything behind them changes."""

import os
import shutil

import pytest
import torch

import eval_global
from sop.dataset import ImageSet
from tests.test_ingredient import loaders_of
from utils.errors import InputError


@pytest.fixture
def folder(photos, tmp_path):
    return shutil.copytree(photos, tmp_path / "photos")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def batches(loader):
    return [torch.cat(parts) for parts in zip(*loader, strict=True)]


def decoded(monkeypatch):
    """The list of photos decoded from now on, in this process."""
    seen, get = [], ImageSet.__getitem__
    monkeypatch.setattr(ImageSet, "__getitem__", lambda images, item: seen.append(item) or get(images, item))
    return seen


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("decode", ["exact", "fast"])
@pytest.mark.parametrize("crop_size", [28, 32])  # squares of 32 and of 37
def test_the_same_batches(photos, tmp_path, capsys, workers, decode, crop_size):
    settings = {
        "num_workers": workers,
        "decode": decode,
        "crop_size": crop_size,
        "test_file": ["test.txt", "train.txt"],
    }
    plain, cached = loaders_of(photos, **settings), loaders_of(photos, **settings, image_cache=tmp_path / "new" / "dir")
    for name in ("query", "gallery", "query_train", "query"):
        for expected, got in zip(batches(getattr(plain, name)), batches(getattr(cached, name)), strict=True):
            assert torch.equal(expected, got)
    assert names(tmp_path / "new" / "dir") == ["test.txt.images", "train.txt.images"]
    assert capsys.readouterr().out.count("is made\n") == 2


def test_photos_are_decoded_once(photos, tmp_path, monkeypatch, capsys):
    seen = decoded(monkeypatch)
    loaders_of(photos, image_cache=tmp_path)
    assert not seen
    for _ in range(2):
        batches(loaders_of(photos, image_cache=tmp_path).query)
        assert len(seen) == 20
    assert "Caching images: 100%" in capsys.readouterr().err


def change_photo(folder):
    shutil.copyfile(folder / "toy_final/6_1.JPG", folder / "toy_final/9_3.JPG")


def touch_photo(folder):
    os.utime(folder / "toy_final/9_3.JPG", ns=(0, 1))


def change_list(folder):
    lines = (folder / "test.txt").read_text().splitlines()
    (folder / "test.txt").write_text("\n".join(lines[::-1]))


def shorten_list(folder):
    (folder / "test.txt").write_text("\n".join((folder / "test.txt").read_text().splitlines()[:7]))


def cut_cache(folder):
    os.truncate(folder / "cache/test.txt.images", 1000)


@pytest.mark.parametrize("change", [change_photo, touch_photo, change_list, shorten_list, cut_cache])
def test_a_change_is_noticed(folder, change, capsys):
    batches(loaders_of(folder, image_cache=folder / "cache").query)
    change(folder)
    capsys.readouterr()
    got = batches(loaders_of(folder, image_cache=folder / "cache").query)
    assert "test.txt.images (0.0 GB) is made anew: photos, list or settings have changed\n" in capsys.readouterr().out
    assert torch.equal(got[0], batches(loaders_of(folder).query)[0])


@pytest.mark.parametrize("settings", [{"crop_size": 28}, {"decode": "fast"}])
def test_other_settings_are_noticed(photos, tmp_path, capsys, settings):
    batches(loaders_of(photos, image_cache=tmp_path).query)
    got = batches(loaders_of(photos, image_cache=tmp_path, **settings).query)
    assert capsys.readouterr().out.count("is made anew: ") == 1
    assert torch.equal(got[0], batches(loaders_of(photos, **settings).query)[0])


def test_a_bad_photo_leaves_the_old_cache(folder):
    cache = folder / "cache"
    batches(loaders_of(folder, image_cache=cache).query)
    before = (cache / "test.txt.images").read_bytes()
    (folder / "toy_final/9_3.JPG").write_bytes(b"no photo")
    with pytest.raises(InputError, match=r"photo .*9_3\.JPG cannot be read"):
        batches(loaders_of(folder, image_cache=cache).query)
    (folder / "toy_final/9_3.JPG").unlink()
    with pytest.raises(InputError, match=r"photo .*9_3\.JPG cannot be read \(No such file or directory\)"):
        batches(loaders_of(folder, image_cache=cache).query)
    assert names(cache) == ["test.txt.images"]
    assert (cache / "test.txt.images").read_bytes() == before


def test_no_room(photos, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for cache in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match=r"dataset\.image_cache=.*file.* cannot be a folder: .*; choose another"):
            batches(loaders_of(photos, image_cache=cache).query)
    usage = shutil.disk_usage(tmp_path)._replace(free=20 * 3 * 37 * 37 - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(InputError, match=r"images needs 0\.0 GB, but 0\.0 GB are free: make room"):
        batches(loaders_of(photos, image_cache=tmp_path / "cache").query)
    assert names(tmp_path / "cache") == []


def test_a_disk_that_fills_up(photos, tmp_path):
    batches(loaders_of(photos, image_cache=tmp_path).query)
    (tmp_path / "test.txt.images").unlink()
    (tmp_path / ".test.txt.images.part").symlink_to("/dev/full")
    with pytest.raises(InputError, match=r"test\.txt\.images could not be written: No space left on device"):
        batches(loaders_of(photos, image_cache=tmp_path).query)
    assert names(tmp_path) == []


def test_evaluation(tiny, observed, tmp_path):
    recalls = []
    for cache in (None, str(tmp_path / "cache"), str(tmp_path / "cache")):
        run = observed(eval_global.ex, **tiny(temp_dir=tmp_path / "out", dataset={"image_cache": cache}))
        recalls.append(run.info["recall"])
    assert recalls[0] == recalls[1] == recalls[2]
    assert "is made" not in run.printed
