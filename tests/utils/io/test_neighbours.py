import os
import pickle
import pickletools

import numpy as np
import pytest

from tests.faults import fill_disk
from utils import pickle_load, pickle_save
from utils.errors import InputError
from utils.io.neighbours import load_neighbours, save_neighbours

NUMPY_1 = b"numpy.core."


def as_numpy_1(content: bytes) -> bytes:
    """A pickle with numpy 1's names; only for protocols whose names end with a newline."""
    return content.replace(b"numpy._core.", NUMPY_1)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("dtype", ["<i8", "<f4", ">i4", "|u1", "?", "<f2"])
def test_reads_what_numpy_writes(tmp_path, protocol, dtype):
    array = np.arange(6).reshape(2, 3).astype(dtype)
    for given in (array, np.asfortranarray(array), array[:0]):
        (tmp_path / "array.pkl").write_bytes(pickle.dumps(given, protocol=protocol))
        loaded = pickle_load(tmp_path / "array.pkl")
        np.testing.assert_array_equal(loaded, given)
        assert loaded.dtype == given.dtype
        assert loaded.flags.writeable


@pytest.mark.parametrize("protocol", [2, 3])
def test_reads_numpy_1_files(tmp_path, protocol):
    array = np.arange(6).reshape(2, 3)
    content = as_numpy_1(pickle.dumps(array, protocol=protocol))
    assert NUMPY_1 in content
    (tmp_path / "array.pkl").write_bytes(content)
    np.testing.assert_array_equal(pickle_load(tmp_path / "array.pkl"), array)


def test_writes_what_old_pythons_read(tmp_path):
    array = np.arange(200_000).reshape(-1, 10)
    pickle_save(tmp_path / "new" / "array.pkl", array)
    content = (tmp_path / "new" / "array.pkl").read_bytes()
    operations = [(op.name, argument) for op, argument, _ in pickletools.genops(content)]
    assert operations[0] == ("PROTO", 3)
    names = [argument for name, argument in operations if name == "GLOBAL"]
    assert names == ["numpy.core.multiarray _reconstruct", "numpy ndarray", "numpy dtype"]
    np.testing.assert_array_equal(pickle.loads(content), array)
    np.testing.assert_array_equal(pickle_load(tmp_path / "new" / "array.pkl"), array)
    pickle_save(tmp_path / "new" / "array.pkl", [[1.5]])
    assert pickle_load(tmp_path / "new" / "array.pkl").tolist() == [[1.5]]


def test_writes_numbers_only(tmp_path):
    with pytest.raises(TypeError, match="only arrays of numbers"):
        pickle_save(tmp_path / "a.pkl", np.array([object()]))
    assert not list(tmp_path.iterdir())


class Hostile:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def test_code_in_a_file_does_not_run(tmp_path):
    marker = tmp_path / "ran"
    hostile = Hostile(marker)
    objects = np.empty(1, object)
    objects[0] = hostile
    for content in (hostile, [np.zeros(2), hostile], objects, {"state": hostile}):
        for protocol in range(6):
            (tmp_path / "bad.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
            with pytest.raises(InputError, match=r"bad\.pkl is not a pickled numpy array .* nothing in it was run"):
                pickle_load(tmp_path / "bad.pkl")
    assert not marker.exists()


@pytest.mark.parametrize(
    "name", ["os.system", "builtins.eval", "numpy.load", "numpy.core.multiarray.fromfile", "_codecs.decode"]
)
def test_only_the_names_of_an_array_are_known(tmp_path, name):
    module, _, attribute = name.rpartition(".")
    (tmp_path / "bad.pkl").write_bytes(f"c{module}\n{attribute}\n(S'x'\ntR.".encode())
    with pytest.raises(InputError, match=f"it asks for {name}"):
        pickle_load(tmp_path / "bad.pkl")


@pytest.mark.parametrize("content", [b"", b"text", pickle.dumps([1, 2]), pickle.dumps(np.arange(900))[:-100]])
def test_other_content_is_refused(tmp_path, content):
    (tmp_path / "bad.pkl").write_bytes(content)
    with pytest.raises(InputError, match=r"bad\.pkl is not a pickled numpy array of numbers"):
        pickle_load(tmp_path / "bad.pkl")


def test_no_regular_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, reason in ((tmp_path / "pipe", "it is no file"), (tmp_path, "it is no file"), ("none", "No such file")):
        with pytest.raises(InputError, match=f"could not be read: {reason}"):
            pickle_load(path)


@pytest.mark.parametrize(
    ("neighbours", "message"),
    [
        (np.zeros((4, 2), np.float32), r"holds float32 numbers, expected integers: is it nn_dists\.pkl\?"),
        (np.zeros(4, int), r"has shape \(4,\), expected \(4, K\)"),
        (np.zeros((4, 0), int), r"has shape \(4, 0\), expected \(4, K\)"),
        (np.zeros((5, 2), int), r"has 5 rows, expected 4, one per query; it has as many as the training images"),
        (np.zeros((6, 2), int), r"has 6 rows, expected 4, one per query; make it anew"),
        (
            np.array([[0, 1], [2, -1], [0, 1], [0, 1]]),
            r"holds positions from -1 to 2 \(first out of range in row 1\), expected 0 to 8",
        ),
        (
            np.array([[0, 1], [2, 1], [0, 9], [0, 1]]),
            r"holds positions from 0 to 9 \(first out of range in row 2\), expected 0 to 8",
        ),
    ],
)
def test_neighbours_that_do_not_belong(tmp_path, neighbours, message):
    pickle_save(tmp_path / "nn.pkl", neighbours)
    with pytest.raises(InputError, match=rf"neighbour file .*nn\.pkl {message}"):
        load_neighbours(tmp_path / "nn.pkl", 4, 9, {"training": 5})


def test_neighbours_that_belong(tmp_path):
    save_neighbours(tmp_path, np.ones((4, 2)), np.full((4, 2), 8, np.int32))
    loaded = load_neighbours(tmp_path / "nn_inds.pkl", 4, 9)
    assert (loaded.dtype, loaded.tolist()) == (np.int64, [[8, 8]] * 4)
    assert pickle_load(tmp_path / "nn_dists.pkl").dtype == np.float32


def test_queries_among_their_own_neighbours(tmp_path, capsys):
    neighbours = np.array([[(i + j) % 200 for j in range(1, 4)] for i in range(200)])
    pickle_save(tmp_path / "nn.pkl", neighbours)
    load_neighbours(tmp_path / "nn.pkl", 200, 200, is_self_search=True)
    assert capsys.readouterr().out == ""
    neighbours[7, 2] = 7
    pickle_save(tmp_path / "nn.pkl", neighbours)
    assert load_neighbours(tmp_path / "nn.pkl", 200, 200, is_self_search=True)[7].tolist() == [8, 9, 7]
    assert "1 of 200 queries are among their own neighbours and count as matches" in capsys.readouterr().out
    neighbours[:, 0] = np.arange(200)
    pickle_save(tmp_path / "nn.pkl", neighbours)
    load_neighbours(tmp_path / "nn.pkl", 200, 200)  # of a gallery of its own, positions may be equal
    with pytest.raises(InputError, match=r"200 of 200 queries are among their own neighbours \(the first in row 0\)"):
        load_neighbours(tmp_path / "nn.pkl", 200, 200, is_self_search=True)


def test_both_neighbour_files_or_none(tmp_path, monkeypatch):
    save_neighbours(tmp_path, np.ones((4, 2)), np.full((4, 2), 8))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    fill_disk(monkeypatch, "nn_inds.pkl.part", 10)
    with pytest.raises(
        InputError, match=r"nn_dists\.pkl, .*nn_inds\.pkl could not be written: No space left on device"
    ):
        save_neighbours(tmp_path, np.zeros((4, 2)), np.full((4, 2), 3))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
