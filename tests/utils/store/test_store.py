"""Tensors kept in chunks: what is written is what is read, and nothing that is not whole counts."""

import json
import os
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.faults import fill_disk, names
from tests.processes import exit_codes
from utils.errors import InputError
from utils.store.array_file import Layout, StoredRows
from utils.store.store import Store

DIMS = {"descriptors": 2, "maps": 4}
MADE_WITH = {"network": "a", "photos": "b"}
N = 29


def tensors(dtype=torch.float32):
    numbers = torch.Generator().manual_seed(0)
    return [torch.randn(N, 5, generator=numbers), torch.randn(N, 3, 2, 2, generator=numbers).to(dtype)]


def batches(start, dtype=torch.float32, size=4):
    return zip(*(part[start:].split(size) for part in tensors(dtype)), strict=True)


def store_in(folder):
    return Store(folder, DIMS, N, MADE_WITH)


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of eight rows."""
    monkeypatch.setattr("utils.store.store.ROWS_AT_ONCE", 7)


@pytest.fixture
def folder(tmp_path, small_chunks):
    store = store_in(tmp_path)
    store.write(0, batches(0))
    return tmp_path


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_files_hold_what_is_written(tmp_path, small_chunks, dtype):
    descriptors, maps = tensors(dtype)
    store = store_in(tmp_path)
    assert store.count_valid_rows(DIMS) == 0
    store.write(0, batches(0, dtype))
    assert names(tmp_path) == ["descriptors.npy", "maps.npy", "store.json"]
    np.testing.assert_array_equal(np.load(tmp_path / "descriptors.npy"), descriptors)
    mapped = np.load(tmp_path / "maps.npy", mmap_mode="c", allow_pickle=False)
    assert torch.equal(torch.from_numpy(mapped).view(dtype), maps)
    assert json.loads((tmp_path / "store.json").read_text()) == {
        "made_with": MADE_WITH,
        "tensors": {"descriptors": ["torch.float32", [N, 5]], "maps": [str(dtype), [N, 3, 2, 2]]},
        "rows": N,
    }
    again = store_in(tmp_path)
    assert again.count_valid_rows(DIMS) == N
    kept = again.tensors["maps"]
    assert (len(kept), kept.dtype, kept.nbytes) == (N, dtype, maps.nbytes)
    assert torch.equal(kept[3:20], maps[3:20])
    assert torch.equal(kept.to(torch.device("cpu")), maps)
    for rows in ([0], [N - 1], [0, 1, 2, 5, 7, 8, 28], range(N)):
        room = kept.empty_rows(N)
        assert torch.equal(kept.read(np.array(rows), room), maps[list(rows)])
        assert len(room) == N


def test_channels_last_answers_are_written_row_by_row(tmp_path):
    store, (descriptors, maps) = store_in(tmp_path), tensors()
    store.write(0, [(descriptors, maps.contiguous(memory_format=torch.channels_last))])
    np.testing.assert_array_equal(np.load(tmp_path / "maps.npy"), maps)


@pytest.mark.parametrize("written", [1, 2, 3, 7])  # batches before the interrupt
def test_an_interrupted_writing_goes_on_behind_its_last_chunk(tmp_path, small_chunks, written):
    def interrupted():
        for number, batch in enumerate(batches(0)):
            if number == written:
                raise KeyboardInterrupt
            yield batch

    with pytest.raises(KeyboardInterrupt):
        store_in(tmp_path).write(0, interrupted())
    with pytest.raises(ValueError):
        np.load(tmp_path / "maps.npy", mmap_mode="r")
    with (tmp_path / "maps.npy").open("ab") as file:
        file.write(b"half of a chunk that nothing tells of")
    store = store_in(tmp_path)
    start = store.count_valid_rows(DIMS)
    assert start == 8 * (written // 2)
    store.write(start, batches(start))
    again = store_in(tmp_path)
    assert again.count_valid_rows(DIMS) == N
    for name, expected in zip(DIMS, tensors(), strict=True):
        np.testing.assert_array_equal(np.load(tmp_path / f"{name}.npy"), expected)


@pytest.mark.parametrize("moment", [5, 6])  # the second chunk's rows are not yet all on the disk, or not told of
def test_a_killed_process_leaves_its_chunks(tmp_path, small_chunks, moment):
    def be_killed():
        moments = iter(range(moment))
        os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL) if next(moments, None) is None else None
        store_in(tmp_path).write(0, batches(0))

    assert exit_codes(be_killed) == [-signal.SIGKILL]
    store = store_in(tmp_path)
    assert store.count_valid_rows(DIMS) == 8
    assert torch.equal(store.tensors["maps"][:8], tensors()[1][:8])


def test_what_was_made_with_something_else_is_replaced_and_its_readers_keep_it(folder):
    reader = store_in(folder)
    assert reader.count_valid_rows(DIMS) == N
    other = Store(folder, DIMS, N, MADE_WITH | {"photos": "c"})
    assert other.changed() == ["photos"]
    assert other.count_valid_rows(DIMS) == 0
    other.write(0, ([part + 1 for part in batch] for batch in batches(0)))
    assert torch.equal(reader.tensors["maps"].to(torch.device("cpu")), tensors()[1])
    assert other.count_valid_rows(["maps"]) == N
    assert torch.equal(other.tensors["maps"].to(torch.device("cpu")), tensors()[1] + 1)
    assert store_in(folder).changed() == ["photos"]


def array(value):
    return lambda folder: np.save(folder / "maps.npy", value, allow_pickle=True)


def content(text):
    return lambda folder: (folder / "store.json").write_text(text)


def entry(key, value):
    def change(folder):
        file = folder / "store.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))

    return change


SHAPE = ["torch.float32", [N, 5]]
HUGE_HEADER = Layout(torch.float32, (1 << 40, 3, 2, 2)).header
DAMAGES = {
    "truncated": lambda folder: os.truncate(folder / "maps.npy", 300),
    "empty": lambda folder: os.truncate(folder / "maps.npy", 0),
    "gone": lambda folder: (folder / "maps.npy").unlink(),
    "a pickle": array(np.array([{}] * N)),
    "of objects": array(np.full((N, 3, 2, 2), None)),
    "of another shape": array(np.zeros((N, 3, 4, 1), np.float32)),
    "of another format": array(np.zeros((N, 3, 2, 2), np.float16)),
    "a huge header": lambda folder: (folder / "maps.npy").write_bytes(HUGE_HEADER),
    "no JSON": content("{"),
    "a list": content("[]"),
    "deep": content("[" * 5000),
    "a huge shape": entry("tensors", {"descriptors": SHAPE, "maps": ["torch.float32", [N, 1 << 60, 2, 2]]}),
    "too few dimensions": entry("tensors", {"descriptors": SHAPE, "maps": SHAPE}),
    "an unknown format": entry("tensors", {"descriptors": SHAPE, "maps": ["torch.int8", [N, 3, 2, 2]]}),
    **{f"{rows} rows": entry("rows", rows) for rows in (0, N + 1, -1, None)},
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_store_is_made_anew(folder, name):
    DAMAGES[name](folder)
    store = store_in(folder)
    assert store.count_valid_rows(DIMS) == 0
    store.write(0, batches(0))
    again = store_in(folder)
    assert again.count_valid_rows(DIMS) == N
    assert torch.equal(again.tensors["maps"].to(torch.device("cpu")), tensors()[1])


def test_a_file_that_shrinks_while_it_is_read(folder):
    store = store_in(folder)
    assert store.count_valid_rows(DIMS) == N
    os.truncate(folder / "maps.npy", 300)
    with pytest.raises(InputError, match=r"maps\.npy has become shorter: run the command again"):
        store.tensors["maps"][:]


def test_a_disk_without_room_is_said_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(InputError, match=r"^what is kept of 29 images in .* needs 1\.97e-06 GB, but 1e-06 GB are free"):
        store_in(tmp_path).write(0, batches(0))
    assert names(tmp_path) == []


def test_a_disk_that_fills_up_keeps_the_chunks_before(tmp_path, monkeypatch, small_chunks):
    with monkeypatch.context() as patch:
        fill_disk(patch, "maps.npy", 128 + 20 * 48)
        with pytest.raises(InputError, match="No space left on device; make room and run the command again, which go"):
            store_in(tmp_path).write(0, batches(0))
    assert store_in(tmp_path).count_valid_rows(DIMS) == 16


def test_rows_of_another_shape_are_not_put_behind_those_that_are_there(folder):
    with pytest.raises(InputError, match=r"holds tensors of other shapes: delete it"):
        store_in(folder).write(8, [(torch.ones(4, 6), torch.ones(4, 3, 2, 2))])


def test_files_are_closed_with_the_tensors(folder):
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    rows = StoredRows(folder / "maps.npy", Layout(torch.float32, (N, 3, 2, 2)))
    assert len(os.listdir("/proc/self/fd")) == before + 1  # noqa: PTH208
    del rows
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
