import errno
import os
import shutil
from collections import Counter
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import rrt.index as searched_index
from rrt import Features, InputError, Reranker, index_upkeep, indexing
from rrt.index import Index, update
from rrt.index_table import array_of, engine, existing_table, photos_in
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
def index(tmp_path):
    """The folder of an index that is not there yet."""
    return tmp_path / "index"


@pytest.fixture
def indexed(own, index, reranker) -> list[Path]:
    """The seven photos, in the index."""
    paths = find_photos([own])
    update(index, paths, reranker)
    return paths


@pytest.fixture
def small_batches(monkeypatch):
    """Batches of three photos."""
    monkeypatch.setattr(indexing, "BATCH_SIZE", 3)


def paint(path, colour="red"):
    Image.new("RGB", (40, 30), colour).save(path)


def opened(folder) -> Index:
    return Index(folder, device="cpu")


def paths_in(folder) -> list[str]:
    """The photos of an index."""
    return sorted(photo.path for photo in photos_in(existing_table(folder)))


def descriptors_in(folder) -> torch.Tensor:
    """The descriptors of an index, by path."""
    rows = existing_table(folder).search().select(["path", "descriptor"]).to_arrow().sort_by("path")
    return torch.from_numpy(array_of(rows, "descriptor").copy())


def names(results) -> list[str]:
    return [result.photo for result in results]


def test_finds_photos(own, tmp_path):
    (own / "deeper").mkdir()
    (own / "deeper" / "one.PNG").touch()
    (own / "notes.md").touch()
    found = find_photos([own])
    assert len(found) == 8 and own / "deeper" / "one.PNG" in found
    (tmp_path / "list.txt").write_text(f"{own.name}/{found[1].name}\n\n{found[2]}\n")
    assert find_photos([tmp_path / "list.txt", found[1]]) == sorted(found[1:3])
    (tmp_path / "empty").mkdir()
    for source, problem in (("nowhere", "nowhere does not exist"), ("empty", r"no photos in .*empty: give folders")):
        with pytest.raises(InputError, match=problem):
            find_photos([tmp_path / source])


def test_counts_the_files_that_pil_does_not_read(tmp_path):
    names = ("a.jpe", "b.jp2", "c.ppm", "@eaDir/a.jpg", ".thumbnails/b.jpg", "deep/._c.jpg")
    for name in (*names, "1.HEIC", "2.heic", "3.dng", "Makefile", ".hidden", "deep/4.heif"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    Image.new("RGB", (40, 30)).save(tmp_path / "no ending", "JPEG")
    os.mkfifo(tmp_path / "pipe")
    left_out: Counter[str] = Counter()
    found = find_photos([tmp_path, tmp_path / "deep", tmp_path / "3.dng"], left_out)
    assert [path.name for path in found] == ["3.dng", "a.jpe", "b.jp2", "c.ppm", "no ending"]
    assert left_out == {".heic": 2, ".heif": 1, "": 2}
    assert len(find_photos([tmp_path / ".thumbnails"])) == 1


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


def test_searches_as_the_reranker_ranks(reranker, own, index, small_batches):
    photos = find_photos([own])
    assert update(index, photos, reranker)[:3] == (7, 7, 0)
    searched = opened(index)
    features, query = reranker.embed(photos), reranker.embed(photos[2])
    cosines = (features.descriptors @ query.descriptors[0]).numpy()
    order = np.argsort(-cosines, kind="stable")
    (results,) = searched.search(query, top=5)
    np.testing.assert_allclose([result.cosine for result in results], cosines[order[:5]], atol=1e-6)
    assert names(results)[0] == str(photos[2]) and all(result.logit is None for result in results)

    nearest = [photos[i] for i in order[:4]]
    expected = reranker.rank(photos[2], nearest, fusion=(1, 2))
    (results,) = searched.search(query, top=6, rerank=4, fusion=(1, 2))
    assert names(results)[:4] == [str(nearest[match.index]) for match in expected]
    for result, match in zip(results, expected, strict=False):
        assert result[1:4] == pytest.approx(match[1:4], abs=1e-4)
        assert result.rank_by_cosine == order.tolist().index(photos.index(Path(result.photo))) + 1
    assert [result.score for result in results[4:]] == [None, None]
    assert len(searched.search(reranker.embed(photos[:2]), top=1000, rerank=1000)[1]) == 7

    scaled = Features(features.descriptors * (1 + 3e-7), features.maps)  # by rounding a cosine may be above 1
    for rerank in (0, 3):
        results = searched.search(scaled, top=7, rerank=rerank)
        cosines = [result.cosine for of_query in results for result in of_query]
        assert max(cosines) == 1 and min(cosines) >= -1


def test_follows_the_folder(reranker, own, index, small_batches, indexed):
    assert update(index, indexed, reranker)[:3] == (7, 0, 0)
    paint(own / "new.png")
    paint(indexed[5], "blue")
    for path in indexed[:3]:
        path.unlink()
    left = find_photos([own])
    assert update(index, left, reranker, sync=True, yes=True)[:7] == (5, 1, 1, 3, 0, 0, [])
    assert paths_in(index) == [str(path) for path in left]
    for query in (own / "new.png", indexed[5]):
        assert names(opened(index).search(reranker.embed(query), 1)[0]) == [str(query)]


def test_continues_after_an_interrupt(reranker, own, tmp_path, small_batches, monkeypatch):
    embedded = []
    embed_pixels = Reranker.embed_pixels

    def interrupted(self, pixels):
        if len(embedded) == 1:
            raise KeyboardInterrupt
        embedded.append(len(pixels))
        return embed_pixels(self, pixels)

    other = Reranker(reranker.network, reranker.settings, device="cpu")
    monkeypatch.setattr(Reranker, "embed_pixels", interrupted)
    for name, model in (("index", reranker), ("begun", other)):  # the second one before it has a photo
        with pytest.raises(KeyboardInterrupt):
            update(tmp_path / name, find_photos([own]), model)
    monkeypatch.setattr(Reranker, "embed_pixels", embed_pixels)
    assert len(opened(tmp_path / "index")) == 3
    for name, added in (("index", 4), ("begun", 7)):
        assert update(tmp_path / name, find_photos([own]), reranker)[:4] == (7, added, 0, 0)
        assert len(opened(tmp_path / name)) == 7


def test_a_search_during_an_update(reranker, own, index, small_batches, indexed, monkeypatch):
    """A search is of the newest version; one whose files are merged away meanwhile says so."""
    monkeypatch.setattr(index_upkeep, "MAX_FRAGMENTS", 0)
    searched, query = opened(index), reranker.embed(indexed[3])
    for path in indexed[:3]:
        path.unlink()
    update(index, find_photos([own]), reranker, sync=True, yes=True)
    assert names(searched.search(query, top=7)[0])[0] == str(indexed[3]) and len(searched) == 4
    (data,) = (index / "photos.lance" / "data").iterdir()  # merged, and other versions are gone
    paint(own / "new.png")
    nearest = searched_index.nearest

    def nearest_before_an_update(*arguments):
        query = nearest(*arguments)
        update(index, find_photos([own]), reranker)
        assert not data.exists()
        return query

    monkeypatch.setattr(searched_index, "nearest", nearest_before_an_update)
    with pytest.raises(InputError, match="was changed during the search: search again"):
        searched.search(query, top=7, rerank=7)
    monkeypatch.setattr(searched_index, "nearest", nearest)
    assert len(searched.search(query, top=7, rerank=7)[0]) == 5


def test_folders_of_photos_are_no_index(reranker, own):
    for i, path in enumerate(find_photos([own])):
        (own / f"part_{i % 2}").mkdir(exist_ok=True)
        path.rename(own / f"part_{i % 2}" / path.name)
    with pytest.raises(InputError, match="has files that are not an index's"):
        update(own, find_photos([own]), reranker)
    assert len(find_photos([own])) == 7


def test_leaves_out_unreadable_photos(reranker, own, tmp_path):
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


def test_refuses_another_index(reranker, own, index, indexed):
    before = existing_table(index).version
    other = Reranker(reranker.network, reranker.settings, crop_size=96, device="cpu")
    with pytest.raises(InputError, match="is an index of another network"):
        update(index, indexed, other)
    with pytest.raises(InputError, match="has files that are not an index's"):
        update(own, indexed, reranker)
    with pytest.raises(InputError, match="is no index: `python -m rrt index"):
        Index(own)
    assert existing_table(index).version == before


def test_an_index_of_an_older_version(reranker, index, indexed):
    (index / "index.json").write_text('{"format": 2}')
    for use in (opened, lambda folder: update(folder, indexed, reranker)):
        with pytest.raises(InputError) as raised:
            use(index)
        assert str(raised.value) == (
            f"{index} is an index of an older version: `python -m rrt index PHOTOS... --to NEW --model {index}/model` "
            "makes a new one"
        )


@pytest.mark.parametrize("metadata", [{}, {"rrt": '{"format": 7, "model": "", "map_shape": []}'}, {"rrt": "{"}])
def test_tables_of_others(tmp_path, metadata):
    database = engine().connect(tmp_path)
    database.create_table(
        "photos", import_module("pyarrow").table({"path": ["a.jpg"]}).replace_schema_metadata(metadata)
    )
    with pytest.raises(
        InputError, match=r"^.* (is of version 7, not 3|cannot be opened \(.*\)): index again into a new"
    ):
        Index(tmp_path)


def test_a_damaged_index(reranker, index, indexed):
    for folder, problem in (("data", "is damaged"), ("_versions", "cannot be opened")):
        for path in (index / "photos.lance" / folder).iterdir():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(InputError, match=f"{index} {problem} .*: index again into a new folder"):
            opened(index).search(reranker.embed(indexed[0]), top=3, rerank=3)


def test_removes_nothing_without_sync(reranker, own, index, small_batches, monkeypatch):
    photos = find_photos([own])
    monkeypatch.chdir(own)
    update(index, [Path(path.name) for path in photos[:4]], reranker)  # kept as absolute paths
    assert update(index, photos[4:], reranker)[:7] == (7, 3, 0, 0, 0, 4, [])
    before = reranker.embed(photos).descriptors
    photos[0].unlink()
    assert update(index, find_photos([own]), reranker)[:7] == (7, 0, 0, 0, 0, 1, [])
    assert paths_in(index) == [*map(str, photos)]
    torch.testing.assert_close(descriptors_in(index), before)


def test_removes_few_with_sync(reranker, own, index, indexed, monkeypatch):
    paint(own / "new.png")
    indexed[0].unlink()
    written = existing_table(index).version
    with pytest.raises(InputError) as raised:
        update(index, find_photos([own]), reranker, sync=True)
    assert str(raised.value) == (
        f"1 of the 7 photos of {index} are not among those given: nothing was changed; index without --sync to keep "
        "them, or with --sync --yes to remove them"
    )
    assert existing_table(index).version == written
    monkeypatch.setattr(indexing, "MAX_REMOVED", 1 / 7)
    assert update(index, find_photos([own]), reranker, sync=True)[:7] == (7, 1, 0, 1, 0, 0, [])
    assert paths_in(index) == [*map(str, find_photos([own]))]


@pytest.mark.parametrize("left", [[], [".directory"]])
def test_photos_of_an_unmounted_drive_are_kept(reranker, own, index, tmp_path, monkeypatch, left):
    monkeypatch.setattr(indexing, "MAX_REMOVED", 1)
    drive = tmp_path / "drive"
    shutil.copytree(own, drive / "photos" / "deep")
    update(index, find_photos([own, drive]), reranker)
    shutil.move(drive, tmp_path / "elsewhere")
    drive.mkdir()
    for name in left:
        (drive / name).touch()
    with pytest.raises(InputError, match=f"7 of the 14 photos .*, some of folders that are empty now.*{drive}"):
        update(index, find_photos([own, drive]), reranker, sync=True)
    assert update(index, find_photos([own, drive]), reranker)[:4] == (14, 0, 0, 0)
    assert update(index, find_photos([own, drive]), reranker, sync=True, yes=True)[:4] == (7, 0, 0, 7)


def test_photos_that_cannot_be_read_now_are_kept(reranker, own, index, tmp_path, indexed):
    before = reranker.embed(indexed).descriptors
    indexed[1].write_text("no photo")
    indexed[2].unlink()
    for sync in (False, True):
        done = update(index, indexed, reranker, sync=sync)
        assert done[:6] == (7, 0, 0, 0, 2, 0) and len(done.problems) == 2
    own.rename(tmp_path / "away")
    with pytest.raises(InputError, match=r"no photo could be read; photo .* does not exist"):
        update(index, indexed, reranker, sync=True)
    assert torch.equal(descriptors_in(index), before)


def test_an_interrupt_keeps_changed_photos(reranker, index, small_batches, indexed, monkeypatch):
    for path in indexed:
        paint(path)
    monkeypatch.setattr(indexing, "_with_batch", lambda *arguments: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        update(index, indexed, reranker)
    monkeypatch.undo()
    assert len(opened(index)) == 7
    assert update(index, indexed, reranker)[:3] == (7, 0, 7)


def test_exchanged_photos_are_noticed(reranker, index, tmp_path):
    photos = [tmp_path / name for name in ("a.bmp", "b.bmp")]
    for path, colour in zip(photos, ("red", "blue"), strict=True):
        paint(path, colour)
        os.utime(path, (1e9, 1e9))
    expected = reranker.embed(photos).descriptors
    update(index, photos, reranker)
    photos[0].rename(tmp_path / "c")
    photos[1].rename(photos[0])
    (tmp_path / "c").rename(photos[1])
    assert update(index, photos, reranker)[:3] == (2, 0, 2)
    assert torch.equal(descriptors_in(index), expected.flip(0))


def damage(model: Path, file: str) -> None:
    if file == "all":
        shutil.rmtree(model)
    elif file == "a bit":
        content = bytearray((model / "model.safetensors").read_bytes())
        content[-1] ^= 1
        (model / "model.safetensors").write_bytes(content)
    else:
        (model / file).write_text("{")


@pytest.mark.parametrize("file", ["all", "config.json", "model.safetensors", "a bit"])
def test_a_damaged_model_is_replaced(reranker, index, indexed, monkeypatch, file):
    monkeypatch.chdir(index.parent)
    index = Path("index")  # "index/model" is no repository of the hub
    damage(index / "model", file)
    written = existing_table(index).version
    with pytest.raises(InputError, match=r"index/model is damaged or missing: `.* --to index --model MODEL` writes it"):
        opened(index)
    assert update(index, indexed, reranker)[:7] == (7, 0, 0, 0, 0, 0, [])
    assert existing_table(index).version == written
    assert opened(index).reranker.digest() == reranker.digest()


def test_hidden_folders_are_allowed(reranker, index, indexed):
    for folder in (".ipynb_checkpoints", "@eaDir", "model/.ipynb_checkpoints"):
        (index / folder).mkdir()
        (index / folder / "something").touch()
    assert update(index, indexed, reranker)[:3] == (7, 0, 0)
