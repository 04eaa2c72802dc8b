import errno
import json
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from rrt import InputError, Reranker
from rrt import index as module
from rrt.index import Index, update
from rrt.photos import find_photos


@pytest.fixture
def own(paths, tmp_path):
    """A folder with the seven photos."""
    folder = tmp_path / "own photos"
    folder.mkdir()
    for path in paths:
        shutil.copy(path, folder)
    return folder


@pytest.fixture
def small_parts(monkeypatch):
    """Parts of three photos."""
    monkeypatch.setattr(module, "PART", 3)


def names(found) -> list[str]:
    return [photo.photo for photo in found]


def test_finds_photos(own, tmp_path):
    (own / "deeper").mkdir()
    (own / "deeper" / "one.PNG").touch()
    (own / "notes.md").touch()
    found = find_photos([own])
    assert len(found) == 8 and own / "deeper" / "one.PNG" in found
    (tmp_path / "list.txt").write_text(f"{own.name}/{found[1].name}\n\n{found[2]}\n")
    assert find_photos([tmp_path / "list.txt", found[1]]) == sorted(found[1:3])
    with pytest.raises(InputError, match="nowhere does not exist"):
        find_photos(["nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no photos in .*empty: give folders"):
        find_photos([tmp_path / "empty"])


def test_a_folder_that_cannot_be_read_is_no_folder_without_photos(own, monkeypatch):
    (own / "deeper").mkdir()
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("deeper"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match=r"deeper cannot be read \(Permission denied\)"):
        find_photos([own])


def test_searches_as_the_reranker_ranks(reranker, own, tmp_path, small_parts):
    photos = find_photos([own])
    assert update(tmp_path / "index", photos, reranker)[:3] == (7, 7, 0)
    searched = Index(tmp_path / "index", device="cpu")
    features, query = reranker.embed(photos), reranker.embed(photos[2])
    cosines = (features.descriptors @ query.descriptors[0]).numpy()
    order = np.argsort(-cosines, kind="stable")
    (found,) = searched.search(query, top=5)
    np.testing.assert_allclose([photo.cosine for photo in found], cosines[order[:5]], atol=1e-6)
    assert names(found)[0] == str(photos[2]) and all(photo.logit is None for photo in found)

    nearest = [photos[i] for i in order[:4]]
    expected = reranker.rank(photos[2], nearest, fusion=(1, 2))
    (found,) = searched.search(query, top=6, rerank=4, fusion=(1, 2))
    assert names(found)[:4] == [str(nearest[match.index]) for match in expected]
    for photo, match in zip(found, expected, strict=False):
        assert photo[1:] == pytest.approx(match[1:], abs=1e-4)
    assert [photo.score for photo in found[4:]] == [None, None]
    assert len(searched.search(reranker.embed(photos[:2]), top=1000, rerank=1000)[1]) == 7


def test_follows_the_folder(reranker, own, tmp_path, small_parts, monkeypatch):
    index = tmp_path / "index"
    first = find_photos([own])
    update(index, first, reranker)
    assert update(index, first, reranker)[:3] == (7, 0, 0)
    first[0].unlink()
    Image.new("RGB", (40, 30), "red").save(own / "new.png")
    Image.new("RGB", (40, 30), "blue").save(first[5])
    for path in first[1:3]:
        path.unlink()  # the first part has no photos now
    done = update(index, find_photos([own]), reranker)
    assert done[:3] == (5, 2, 3)
    assert {path.name for path in index.glob("part_*")} == {"part_1", "part_2", "part_3"}
    searched = Index(index, device="cpu")
    assert sorted(photo.path for photo in searched.photos) == [str(path) for path in find_photos([own])]
    for query in (own / "new.png", first[5]):
        assert names(searched.search(reranker.embed(query), 1)[0]) == [str(query)]


def test_goes_on_where_it_was_interrupted(reranker, own, tmp_path, small_parts, monkeypatch):
    embedded = []
    embed_pixels = Reranker.embed_pixels

    def interrupted(self, pixels):
        if len(embedded) == 1:
            raise KeyboardInterrupt
        embedded.append(len(pixels))
        return embed_pixels(self, pixels)

    monkeypatch.setattr(Reranker, "embed_pixels", interrupted)
    with pytest.raises(KeyboardInterrupt):
        update(tmp_path / "index", find_photos([own]), reranker)
    with pytest.raises(KeyboardInterrupt):  # with another model, before there is a photo
        update(tmp_path / "begun", find_photos([own]), Reranker(reranker.network, reranker.settings, device="cpu"))
    monkeypatch.setattr(Reranker, "embed_pixels", embed_pixels)
    assert len(Index(tmp_path / "index", device="cpu").photos) == 3
    for name, added in (("index", 4), ("begun", 7)):
        assert update(tmp_path / name, find_photos([own]), reranker)[:3] == (7, added, 0)
        assert len(Index(tmp_path / name, device="cpu").photos) == 7


def test_a_search_while_photos_are_indexed(reranker, own, tmp_path, small_parts):
    index, photos = tmp_path / "index", find_photos([own])
    update(index, photos, reranker)
    searched, query = Index(index, device="cpu"), reranker.embed(photos[6])
    for path in photos[:3]:
        path.unlink()
    for number in range(2):  # the highest part comes and goes, with as many photos
        Image.new("RGB", (40, 30), "red").save(own / f"{number}.png")
        update(index, find_photos([own]), reranker)
        (own / f"{number}.png").unlink()
    with pytest.raises(InputError, match="has been indexed again meanwhile: search again"):
        searched.search(query, top=7, rerank=7)


def test_folders_of_photos_are_no_index(reranker, own, small_parts):
    photos = find_photos([own])
    for number in range(2):
        (own / f"part_{number}").mkdir()
    for number, path in enumerate(photos):
        path.rename(own / f"part_{number % 2}" / path.name)
    with pytest.raises(InputError, match="has files that are not an index's"):
        update(own, find_photos([own]), reranker)
    assert len(find_photos([own])) == 7


def test_leaves_out_what_it_cannot_read(reranker, own, tmp_path):
    photos = find_photos([own])
    photos[0].write_bytes(photos[0].read_bytes()[:300])
    photos[1].write_text("no photo")
    done = update(tmp_path / "index", [*photos, tmp_path / "none.jpg"], reranker)
    assert done[:3] == (5, 5, 0) and len(done.problems) == 3
    for path, line in zip([tmp_path / "none.jpg", *photos[:2]], done.problems, strict=True):
        assert line.startswith(f"photo {path} cannot be read (")
    with pytest.raises(InputError, match="no photo could be read; photo"):
        update(tmp_path / "other", photos[:2], reranker)
    assert not (tmp_path / "other").exists()


def test_refuses_another_index(reranker, own, tmp_path, content):
    index, photos = tmp_path / "index", find_photos([own])
    update(index, photos, reranker)
    before = (index / "index.json").read_text()
    other = Reranker(reranker.network, reranker.settings, crop_size=96, device="cpu")
    with pytest.raises(InputError, match="is an index of another network"):
        update(index, photos, other)
    with pytest.raises(InputError, match="has files that are not an index's"):
        update(own, photos, reranker)
    with pytest.raises(InputError, match="is no index: `python -m rrt index"):
        Index(own)
    assert (index / "index.json").read_text() == before
    for written, told in [
        (json.dumps(json.loads(before) | {"format": 7}), "of version 7, not 1"),
        (json.dumps(json.loads(before) | {"parts": []}), "damaged"),
        (before[:-5], "damaged"),
        ("[]", "damaged"),
    ]:
        (index / "index.json").write_text(written)
        with pytest.raises(InputError, match=told):
            Index(index)
    (index / "index.json").write_text(before)
    maps = index / "part_0" / "maps.npy"
    maps.write_bytes(maps.read_bytes()[:-1] + b"\1")
    with pytest.raises(InputError, match=r"part_0 is damaged: run"):
        Index(index, device="cpu").search(reranker.embed(photos[0]), top=3, rerank=3)
    assert update(index, photos, reranker)[:3] == (7, 7, 0)
    assert torch.equal(Index(index, device="cpu").descriptors, reranker.embed(photos).descriptors)
