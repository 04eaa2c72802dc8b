"""Cached test images are the loader's own, whoever else makes, changes or deletes caches meanwhile."""

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import eval_global
from sop.dataset import ImageSet
from sop.images.image_cache import DIGEST_BYTES
from tests.faults import exchanged, names
from tests.test_ingredient import loaders_of


def batches(loader):
    return [torch.cat(parts) for parts in zip(*loader, strict=True)]


def cache_in(folder: Path) -> Path:
    """The only file of a folder that is whole: a cache of the test images."""
    (file,) = (folder / name for name in names(folder) if not name.endswith(".part"))
    assert re.fullmatch(r"test\.txt\.[0-9a-f]{12}\.images", file.name)
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
    "resizing", [{"crop_size": 28}, {}, {"interpolation": "bicubic", "crop_fraction": 0.9}]
)  # squares of 32, 37 and 36
def test_equals_uncached_batches(photos, tmp_path, capsys, workers, decode, resizing):
    settings = {"num_workers": workers, "decode": decode, "test_file": ["test.txt", "train.txt"]} | resizing
    plain, cached = loaders_of(photos, **settings), loaders_of(photos, **settings, image_cache=tmp_path / "new" / "dir")
    for name in ("query", "gallery", "query_train", "query"):
        for expected, got in zip(batches(getattr(plain, name)), batches(getattr(cached, name)), strict=True):
            assert torch.equal(expected, got)
    assert [name.partition(".txt.")[0] for name in names(tmp_path / "new" / "dir")] == ["test", "train"]
    assert capsys.readouterr().out.count("is made\n") == 2


def test_photos_are_decoded_once(photos, tmp_path, decoded, capsys):
    loaders_of(photos, image_cache=tmp_path)
    assert not decoded
    for _ in range(2):
        batches(loaders_of(photos, image_cache=tmp_path).query)
        assert len(decoded) == 20
    assert "Caching images: 100%" in capsys.readouterr().err


def test_digest_is_written_last(photos, tmp_path, monkeypatch):
    begun, get = [], ImageSet.__getitem__

    def look(images, item):
        (file,) = tmp_path.iterdir()
        begun.append(file.read_bytes()[:DIGEST_BYTES])
        return get(images, item)

    monkeypatch.setattr(ImageSet, "__getitem__", look)
    loader = loaders_of(photos, image_cache=tmp_path).query
    batches(loader)
    assert set(begun) <= {b"", bytes(DIGEST_BYTES)}
    content = cache_in(tmp_path).read_bytes()
    assert content[:6].hex() == cache_in(tmp_path).name.split(".")[2]
    assert content[:DIGEST_BYTES] == loader.dataset.digest
    squares = np.frombuffer(content, np.uint8, 20 * 3 * 37 * 37, DIGEST_BYTES).reshape(20, 3, 37, 37)
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


@pytest.mark.parametrize("change", [change_photo, touch_photo, change_list, shorten_list])
def test_changed_photos_or_list_make_a_new_file(folder, tmp_path, change, capsys):
    cache = tmp_path / "cache"
    batches(loaders_of(folder, image_cache=cache).query)
    old = cache_in(cache)
    size = old.stat().st_size / 1e9
    change(folder)
    capsys.readouterr()
    got = batches(loaders_of(folder, image_cache=cache).query)
    assert torch.equal(got[0], batches(loaders_of(folder).query)[0])
    printed = capsys.readouterr().out
    assert re.search(r"image cache \S+/test\.txt\.[0-9a-f]{12}\.images \(0\.0 GB\) is made\n", printed)
    told = (
        f"image caches of test.txt for other photos or settings in {cache}: 1, {size:.1f} GB; those that no run needs"
    )
    assert told in printed
    old.unlink()
    cache_in(cache)


def test_exchanged_photos_make_a_new_file(folder, tmp_path):
    with exchanged(folder / "toy_final/6_1.JPG", folder / "toy_final/9_3.JPG"):
        before = batches(loaders_of(folder, image_cache=tmp_path / "cache").query)[0]
    after = batches(loaders_of(folder, image_cache=tmp_path / "cache").query)[0]
    assert torch.equal(after, batches(loaders_of(folder).query)[0]) and not torch.equal(after, before)


def test_files_of_several_settings_and_sets(photos, folder, tmp_path, decoded, capsys):
    change_photo(folder)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "test.txt.images").write_bytes(bytes(3_000_000_000 // 1000))
    (tmp_path / "cache" / "other.test.txt.0123456789ab.images").write_bytes(b"of another list")
    changes = [{}, {"crop_size": 28}, {"decode": "fast"}, {"interpolation": "bicubic"}, {"crop_fraction": 1.0}]
    runs = [*((photos, settings) for settings in changes), (folder, {})]
    for _ in range(2):
        for data, settings in runs:
            got = batches(loaders_of(data, image_cache=tmp_path / "cache", **settings).query)
            made = len(decoded)
            assert torch.equal(got[0], batches(loaders_of(data, **settings).query)[0])
            del decoded[made:]
    assert len(decoded) == 6 * 20
    printed = capsys.readouterr().out
    assert printed.count("is made\n") == 6
    assert re.findall(r"other photos or settings in \S+: (\d), 0\.0 GB", printed) == list("123456")


def test_evaluation(tiny, observed, tmp_path):
    recalls = []
    for cache in (None, str(tmp_path / "cache"), str(tmp_path / "cache")):
        run = observed(eval_global.ex, **tiny(temp_dir=tmp_path / "out", dataset={"image_cache": cache}))
        recalls.append(run.info["recall"])
    assert recalls[0] == recalls[1] == recalls[2]
    assert "is made" not in run.printed
