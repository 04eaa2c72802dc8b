import errno
import json
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rrt import InputError, Reranker, indexing
from rrt.index import Index, update
from rrt.index_folder import read_content
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
    monkeypatch.setattr(indexing, "PART_SIZE", 3)


def paths_in(folder) -> list[str]:
    """The photos of an index."""
    return sorted(photo.path for photo in read_content(folder).photos)


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


def test_finds_what_pil_reads_and_counts_the_rest(own, tmp_path):
    photo = Image.new("RGB", (40, 30), "red")
    for name in ("a.jpe", "b.jp2", "c.ppm", "@eaDir/a.jpg", ".thumbnails/b.jpg", "deep/._c.jpg"):
        (tmp_path / "nas" / name).parent.mkdir(parents=True, exist_ok=True)
        photo.save(tmp_path / "nas" / name, {".jp2": "JPEG2000", ".ppm": "PPM"}.get(Path(name).suffix, "JPEG"))
    for name in ("1.HEIC", "2.heic", "3.dng", "Makefile", ".hidden", "deep/4.heif"):
        (tmp_path / "nas" / name).write_text("something else")
    left_out: Counter[str] = Counter()
    found = find_photos([tmp_path / "nas", tmp_path / "nas" / "deep", tmp_path / "nas" / "3.dng"], left_out)
    assert [path.name for path in found] == ["3.dng", "a.jpe", "b.jp2", "c.ppm"]
    assert left_out == {".heic": 2, ".heif": 1, "": 1}
    (tmp_path / ".hidden").mkdir()
    photo.save(tmp_path / ".hidden" / "given.jpg")
    assert len(find_photos([tmp_path / ".hidden"])) == 1


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
        assert photo[1:4] == pytest.approx(match[1:], abs=1e-4)
        assert photo.rank_by_cosine == order.tolist().index(photos.index(Path(photo.photo))) + 1
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
    done = update(index, find_photos([own]), reranker, sync=True, yes=True)
    assert done == (5, 1, 1, 3, 0, 0, [])
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
        assert update(tmp_path / name, find_photos([own]), reranker)[:4] == (7, added, 0, 0)
        assert len(Index(tmp_path / name, device="cpu").photos) == 7


def test_a_search_while_photos_are_indexed(reranker, own, tmp_path, small_parts):
    index, photos = tmp_path / "index", find_photos([own])
    update(index, photos, reranker)
    searched, query = Index(index, device="cpu"), reranker.embed(photos[6])
    for path in photos[:3]:
        path.unlink()
    for number in range(2):  # the highest part comes and goes, with as many photos
        Image.new("RGB", (40, 30), "red").save(own / f"{number}.png")
        update(index, find_photos([own]), reranker, sync=True, yes=True)
        (own / f"{number}.png").unlink()
    with pytest.raises(InputError, match="was changed during the search: search again"):
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
    assert done.problems[0] == f"photo {tmp_path / 'none.jpg'} does not exist: check the path"
    for path, line in zip(photos[:2], done.problems[1:], strict=True):
        assert line.startswith(f"photo {path} cannot be read (")
    with pytest.raises(InputError, match="no photo could be read; photo"):
        update(tmp_path / "other", photos[:2], reranker)
    assert not (tmp_path / "other").exists()


def refuse(*_, **__):
    raise OSError(errno.EIO, "Input/output error")


def test_refuses_another_index(reranker, own, tmp_path, monkeypatch):
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
        (json.dumps(json.loads(before) | {"format": 7}), "of version 7, not 2: index again into a new folder"),
        (json.dumps(json.loads(before) | {"format": 1}), "of version 1, not 2: index again"),
        (json.dumps(json.loads(before) | {"format": "two"}), "of version two, not 2"),
        (json.dumps(json.loads(before) | {"parts": []}), "damaged"),
        (json.dumps(json.loads(before) | {"next": 0}), "damaged"),
        (json.dumps(json.loads(before) | {"photos": [["/a.jpg", 1, 2, 3, 0, -1]]}), "damaged"),
        (json.dumps(json.loads(before) | {"photos": [["a.jpg", 1, 2, 3, 0, 0]]}), "damaged"),
        (json.dumps(json.loads(before) | {"next": "1e400"}).replace('"1e400"', "1e400"), "damaged"),
        ("[" * 100_000, "damaged"),
        (before[:-5], "damaged"),
        ("[]", "damaged"),
    ]:
        (index / "index.json").write_text(written)
        with pytest.raises(InputError, match=told):
            Index(index)
    with monkeypatch.context() as patched, pytest.raises(InputError, match=r"cannot be read \(Input/output error\)"):
        patched.setattr(Path, "read_text", refuse)
        Index(index)
    (index / "index.json").write_text(before)
    maps = index / "part_0" / "maps.npy"
    maps.write_bytes(maps.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"part_0 is damaged: `python"):
        Index(index, device="cpu").search(reranker.embed(photos[0]), top=3, rerank=3)
    assert update(index, photos[:1], reranker) == (7, 0, 7, 0, 0, 6, [])  # whatever was given
    assert torch.equal(Index(index, device="cpu").descriptors, reranker.embed(photos).descriptors)


def test_takes_nothing_out_by_itself(reranker, own, tmp_path, small_parts, monkeypatch):
    index, photos = tmp_path / "index", find_photos([own])
    monkeypatch.chdir(own)
    update(index, [Path(path.name) for path in photos[:4]], reranker)  # kept as absolute paths
    assert update(index, photos[4:], reranker) == (7, 3, 0, 0, 0, 4, [])
    before = reranker.embed(photos).descriptors
    photos[0].unlink()
    assert update(index, find_photos([own]), reranker) == (7, 0, 0, 0, 0, 1, [])
    searched = Index(index, device="cpu")
    assert paths_in(index) == [*map(str, photos)]
    torch.testing.assert_close(searched.descriptors, before)


def test_takes_out_few_with_sync(reranker, own, tmp_path, monkeypatch):
    index, photos = tmp_path / "index", find_photos([own])
    update(index, photos, reranker)
    Image.new("RGB", (40, 30), "red").save(own / "new.png")
    photos[0].unlink()
    written = (index / "index.json").read_bytes()
    with pytest.raises(InputError) as raised:
        update(index, find_photos([own]), reranker, sync=True)
    assert str(raised.value) == (
        f"1 of the 7 photos of {index} are not among those given: nothing was changed; index without --sync to keep "
        "them, or with --sync --yes to take them out"
    )
    assert (index / "index.json").read_bytes() == written and [path.name for path in index.glob("part_*")] == ["part_0"]
    monkeypatch.setattr(indexing, "MAX_REMOVED", 1 / 7)
    assert update(index, find_photos([own]), reranker, sync=True) == (7, 1, 0, 1, 0, 0, [])
    assert paths_in(index) == [*map(str, find_photos([own]))]


@pytest.mark.parametrize("left", [[], [".directory"], None])
def test_a_drive_that_is_away_costs_nothing(reranker, own, tmp_path, monkeypatch, left):
    monkeypatch.setattr(indexing, "MAX_REMOVED", 1)  # for any number of others
    index, drive = tmp_path / "index", tmp_path / "drive"
    shutil.copytree(own, drive / "photos" / "deep")
    update(index, find_photos([own, drive]), reranker)
    shutil.move(drive, tmp_path / "elsewhere")
    drive.mkdir()
    for name in left or []:
        (drive / name).touch()
    if left is None:
        shutil.copy(next(own.iterdir()), drive)  # another drive
        done = update(index, find_photos([own, drive]), reranker, sync=True)
        assert done[:4] == (8, 1, 0, 7)
        return
    with pytest.raises(InputError, match=f"7 of the 14 photos .*, some of folders that are empty now.*{drive}"):
        update(index, find_photos([own, drive]), reranker, sync=True)
    assert update(index, find_photos([own, drive]), reranker)[:4] == (14, 0, 0, 0)
    drive.rename(tmp_path / "mount point")
    shutil.move(tmp_path / "elsewhere", drive)
    assert update(index, find_photos([own, drive]), reranker, sync=True) == (14, 0, 0, 0, 0, 0, [])
    (tmp_path / "mount point").rename(tmp_path / "other")
    shutil.rmtree(drive / "photos" / "deep")
    assert update(index, find_photos([own, drive]), reranker, sync=True, yes=True)[:4] == (7, 0, 0, 7)


def test_what_cannot_be_read_now_stays_as_it_was(reranker, own, tmp_path):
    index, photos = tmp_path / "index", find_photos([own])
    update(index, photos, reranker)
    before = reranker.embed(photos).descriptors
    photos[1].write_text("no photo")
    photos[2].unlink()
    for sync in (False, True):
        done = update(index, photos, reranker, sync=sync)  # as a list names them
        assert done[:6] == (7, 0, 0, 0, 2, 0) and len(done.problems) == 2
    assert torch.equal(Index(index, device="cpu").descriptors, before)
    own.rename(tmp_path / "away")
    with pytest.raises(InputError, match=r"no photo could be read; photo .* does not exist"):
        update(index, photos, reranker, sync=True)
    assert torch.equal(Index(index, device="cpu").descriptors, before)


def test_an_interrupt_keeps_what_was_to_be_embedded_anew(reranker, own, tmp_path, small_parts, monkeypatch):
    index, photos = tmp_path / "index", find_photos([own])
    update(index, photos, reranker)
    for path in photos:
        Image.new("RGB", (40, 30), "red").save(path)
    monkeypatch.setattr(indexing, "_with_part", lambda *arguments: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        update(index, photos, reranker)
    monkeypatch.undo()
    assert len(Index(index, device="cpu").photos) == 7
    assert update(index, photos, reranker)[:3] == (7, 0, 7)


def test_photos_that_are_exchanged_are_noticed(reranker, tmp_path):
    photos = [tmp_path / "own" / name for name in ("a.bmp", "b.bmp")]
    photos[0].parent.mkdir()
    for path, colour in zip(photos, ("red", "blue"), strict=True):
        Image.new("RGB", (40, 30), colour).save(path)
        os.utime(path, (1e9, 1e9))
    expected = reranker.embed(photos).descriptors
    update(tmp_path / "index", photos, reranker)
    photos[0].rename(tmp_path / "c")
    photos[1].rename(photos[0])
    (tmp_path / "c").rename(photos[1])
    assert update(tmp_path / "index", photos, reranker)[:3] == (2, 0, 2)
    assert torch.equal(Index(tmp_path / "index", device="cpu").descriptors, expected.flip(0))


@pytest.mark.parametrize("damage", ["gone", "config.json", "model.safetensors", "a bit"])
def test_a_damaged_model_is_mended(reranker, own, tmp_path, monkeypatch, damage):
    monkeypatch.chdir(tmp_path)
    index, photos = Path("index"), find_photos([own])  # "index/model" is no repository of the hub
    update(index, photos, reranker)
    if damage == "gone":
        shutil.rmtree(index / "model")
    elif damage == "a bit":
        content = bytearray((index / "model" / "model.safetensors").read_bytes())
        content[-1] ^= 1
        (index / "model" / "model.safetensors").write_bytes(content)
    else:
        (index / "model" / damage).write_text("{")
    written = (index / "index.json").read_bytes()
    with pytest.raises(
        InputError, match=r"index/model is damaged or missing: `.* --to index --model MODEL` writes it again"
    ):
        Index(index, device="cpu")
    assert update(index, photos, reranker) == (7, 0, 0, 0, 0, 0, [])
    assert (index / "index.json").read_bytes() == written
    assert Index(index, device="cpu").reranker.digest() == reranker.digest()


def test_hidden_folders_are_no_obstacle(reranker, own, tmp_path):
    index, photos = tmp_path / "index", find_photos([own])
    update(index, photos, reranker)
    for folder in (".ipynb_checkpoints", "@eaDir", "part_0/.ipynb_checkpoints"):
        (index / folder).mkdir()
        (index / folder / "something").touch()
    assert update(index, photos, reranker)[:3] == (7, 0, 0)


def test_a_cosine_is_at_most_1(reranker, own, tmp_path):
    photos = find_photos([own])
    update(tmp_path / "index", photos, reranker)
    searched = Index(tmp_path / "index", device="cpu")
    queries = reranker.embed(photos)
    searched.descriptors *= 1 + 3e-7  # as rounding leads beyond
    for rerank in (0, 3):
        found = searched.search(queries, top=7, rerank=rerank)
        cosines = [photo.cosine for photos in found for photo in photos]
        assert max(cosines) == 1 and min(cosines) >= -1
