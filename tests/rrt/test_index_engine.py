"""What an index has of its engine: metadata and conditions, upkeep, addresses, and writes that are whole or not."""

import os
import resource
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from rrt import Features, InputError, index_upkeep, indexing
from rrt.__main__ import main
from rrt.index import Index, update
from rrt.index_table import Photo, existing_table, photos_in, write
from tests import ROOT
from utils.io.lock import exclusive_lock

CSV = """photo,category,price,sold
{0},chair,12,2026-01-31
{1},sofa,7.5,
{2},chair,,2026-02-01
nowhere.jpg,it's,1,
"""


@pytest.fixture
def index(tmp_path):
    """The folder of an index that is not there yet."""
    return tmp_path / "index"


@pytest.fixture
def metadata(tmp_path, paths):
    """A CSV file; a photo's path is relative to it, and there is a byte-order mark."""
    file = tmp_path / "metadata.csv"
    relative = os.path.relpath(paths[0], tmp_path)
    file.write_text("\ufeff" + CSV.format(relative, *paths[1:3]), encoding="utf-8")
    return file


def found(index, query, where, **options) -> list[str]:
    (results,) = Index(index, device="cpu").search(query, 10, where=where, **options)
    return [result.photo for result in results]


def table_of(index, number: int, width: int = 8):
    """The table of an index of stand-ins."""
    rng = np.random.default_rng(number)
    descriptors = torch.nn.functional.normalize(torch.from_numpy(rng.standard_normal((number, width), np.float32)))
    photos = [Photo(f"/{i}.jpg", i, i, i) for i in range(number)]
    return write(index, None, "", photos, Features(descriptors, torch.zeros(number, 2, 1, 1)))


def test_a_search_under_a_condition(reranker, index, paths, metadata):
    assert update(index, paths, reranker, metadata=metadata)[:2] == (7, 7)
    query = reranker.embed(paths[1])
    plain = found(index, query, None)
    for where, expected in {
        "category = 'chair'": {0, 2},
        "price > 10": {0},
        "sold >= DATE '2026-02-01'": {2},
        "category IS NULL": {3, 4, 5, 6},
        "path LIKE '%/10_%' OR category = 'sofa'": {1, 4, 5, 6},
        "category = 'it''s'": set(),
    }.items():
        of_where = [path for path in plain if path in {str(paths[i]) for i in expected}]
        assert found(index, query, where) == of_where
        assert sorted(found(index, query, where, rerank=5)) == sorted(of_where)
    columns = "path, size, mtime, ctime, category, price, sold"
    for where in ("categroy = 'chair'", "category ="):
        with pytest.raises(InputError, match=rf"^where=.*{where[:8]}.*: give a condition on {columns}$"):
            found(index, query, where)


def test_queries_of_another_network(reranker, index, paths):
    update(index, paths, reranker)
    wide = Features(torch.ones(1, 64), torch.ones(1, 128, 2, 2))
    with pytest.raises(InputError, match=r"are not of this network: expected \(n, 16\) and \(n, 16, h, w\)"):
        Index(index, device="cpu").search(wide, 5)


def test_metadata_of_later_calls(reranker, index, paths, metadata, capsys):
    update(index, paths[:3], reranker, metadata=metadata)
    assert main(["index", *map(str, paths), "--to", str(index), "--metadata", str(metadata)]) == 0
    assert f"1 lines of {metadata} name photos that the index does not have\n" in capsys.readouterr().out
    metadata.write_text(f"photo,category,new\n{paths[1]},12,x\n")  # a number as the text that the column has
    assert main(["index", str(paths[0]), "--to", str(index), "--metadata", str(metadata)]) == 0
    query = reranker.embed(paths[1])
    assert found(index, query, "category = '12' AND new = 'x' AND price = 7.5") == [str(paths[1])]
    assert len(found(index, query, "category = 'chair' AND new IS NULL")) == 2


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("photo\na.jpg\n", r"has the columns : behind the photos' path give names"),
        ("photo,size\na.jpg,1\n", r"has the columns 'size': behind"),
        ("photo,a b,c,c\na.jpg,1,2,3\n", r"has the columns 'a b', 'c', 'c': behind"),
        ("photo,c\na.jpg,1\n./a.jpg,2\n", r"has /.*/a\.jpg twice: give each photo one line"),
        ("photo,c\na.jpg,1,2\n", r"cannot be read \(.*\): give a CSV file with a line of names, photos' paths first"),
        ("", r"cannot be read \(.*\): give a CSV file"),
        (b"photo,c\n\xff,1\n", r"cannot be read \(.*\): give a CSV file"),
    ],
)
def test_refused_metadata(reranker, index, paths, metadata, text, problem):
    metadata.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=rf"^{metadata} {problem}"):
        update(index, paths, reranker, metadata=metadata)
    assert not index.exists()


def test_metadata_of_another_type(reranker, index, paths, metadata):
    update(index, paths, reranker, metadata=metadata)
    metadata.write_text(f"photo,price\n{paths[0]},cheap\n")
    with pytest.raises(InputError, match=r"metadata were of other types before \(.*\): name the column otherwise"):
        update(index, paths, reranker, metadata=metadata)


def test_a_photo_that_is_embedded_again_keeps_its_metadata(reranker, index, metadata, tmp_path):
    photo = tmp_path / "a.png"
    Image.new("RGB", (40, 30), "red").save(photo)
    metadata.write_text("photo,category\na.png,chair\n")
    update(index, [photo], reranker, metadata=metadata)
    Image.new("RGB", (40, 30), "blue").save(photo)
    assert update(index, [photo], reranker)[:3] == (1, 0, 1)
    assert found(index, reranker.embed(photo), "category = 'chair'") == [str(photo)]


def test_fragments_are_merged(reranker, index, paths, monkeypatch):
    monkeypatch.setattr(indexing, "BATCH_SIZE", 1)
    for limit, free, number in ((7, 1e12, 7), (6, 1000, 7), (6, 1e12, 1)):  # merging needs room
        monkeypatch.setattr(index_upkeep, "MAX_FRAGMENTS", limit)
        monkeypatch.setattr("shutil.disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        update(index, paths, reranker)
        assert len(list((index / "photos.lance" / "data").iterdir())) == number


def test_the_approximate_search(index, monkeypatch):
    table = table_of(index, 2000)
    assert index_upkeep.keep_up(index, table, True) is None
    monkeypatch.setattr(index_upkeep, "ANN_FROM", 1999)
    assert 0.9 < index_upkeep.keep_up(index, table, False) <= 1
    assert index_upkeep.keep_up(index, table, False) is None
    (kind,) = table.list_indices()
    assert (kind.index_type, kind.columns) == ("IvfFlat", ["descriptor"])
    query = np.asarray(table.search().limit(1).to_arrow()["descriptor"][0].as_py(), np.float32)
    assert "ANNSubIndex" in index_upkeep.nearest(table, query, 5).explain_plan()


def test_the_recall_of_a_search_that_misses(index, monkeypatch):
    """Half of what is near is not found."""
    table = table_of(index, 500)
    nearest = index_upkeep.nearest
    number = iter(range(1000))

    def missing(table, descriptor, depth):
        return nearest(table, descriptor, depth if next(number) % 2 else depth // 2)

    monkeypatch.setattr(index_upkeep, "nearest", missing)
    assert index_upkeep.recall(table) == 0.5


def test_an_address(reranker, index, paths):
    address = f"file://{index}"
    with pytest.raises(InputError, match="is no index"):
        Index(address)
    assert update(address, paths[:5], reranker)[:3] == (5, 5, 0)
    assert update(address, paths, reranker)[:3] == (7, 2, 0)
    assert sorted(path.name for path in index.iterdir()) == ["model", "photos.lance"]
    query = reranker.embed(paths[0])
    (results,) = Index(address, device="cpu").search(query, 3, rerank=3)
    assert results == Index(index, device="cpu").search(query, 3, rerank=3)[0]


def test_names_that_are_no_utf8(reranker, index, tmp_path):
    photo = tmp_path / os.fsdecode(b"caf\xe9.png")
    Image.new("RGB", (40, 30), "red").save(photo)
    for added in (1, 0):
        assert update(index, [photo], reranker)[:3] == (1, added, 0)
    assert found(index, reranker.embed(photo), None) == [str(photo)]


def test_one_writer_at_a_time(reranker, index, paths):
    update(index, paths[:2], reranker)
    with exclusive_lock(index / ".lock", "", ""), pytest.raises(InputError) as raised:
        update(index, paths, reranker)
    assert str(raised.value).startswith(f"{index} is being written by process {os.getpid()} on ")
    assert str(raised.value).endswith(": wait for it, or choose another folder")
    assert len(Index(index, device="cpu")) == 2


def test_a_full_disk_leaves_an_index_as_it_was(reranker, index, paths):
    update(index, paths[:2], reranker)
    before = photos_in(existing_table(index))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(InputError, match=rf"^{index} could not be written to \(.*\): make room and run"):
            update(index, paths, reranker)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert photos_in(existing_table(index)) == before
    assert update(index, paths, reranker)[:3] == (7, 5, 0)


KILLED = """
import os, signal, sys
from rrt import Reranker, indexing
from rrt.index import update
indexing.BATCH_SIZE = 2
embed, calls = Reranker.embed_pixels, iter(range(9))
def embed_until_killed(self, pixels):
    if next(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return embed(self, pixels)
Reranker.embed_pixels = embed_until_killed
update(sys.argv[1], sys.argv[3:], Reranker.from_pretrained(sys.argv[2], device="cpu"))
"""


def test_a_killed_update_goes_on(saved, reranker, index, paths):
    done = subprocess.run([sys.executable, "-c", KILLED, index, saved, *paths], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    assert update(index, paths, reranker)[:3] == (7, 3, 0)


WITHOUT = """
import sys
sys.modules["lancedb"] = None
from rrt.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def test_without_the_engine(saved, reranker, index, paths, tmp_path):
    update(index, paths, reranker)
    model = ["--model", str(saved)]
    for arguments in (["search", index, paths[0]], ["index", paths[0], "--to", tmp_path / "other", *model]):
        command = [sys.executable, "-c", WITHOUT, *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert done.stderr == "an index needs lancedb: pip install '.[search]' in the clone, or pip install lancedb\n"
    assert not (tmp_path / "other").exists()
    command = [sys.executable, "-c", WITHOUT, "compare", *paths[:2], *model]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == 0
