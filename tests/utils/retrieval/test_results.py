import numpy as np
import pytest

from tests.utils.retrieval.test_fusion import drawn
from utils.errors import InputError
from utils.io.neighbours import save_neighbours
from utils.retrieval.ranking import Weights, ranking_by
from utils.retrieval.results import NAME, Labels, load_scores, save_scores


@pytest.fixture
def scored():
    candidates, labels, _ = drawn()
    return candidates, Labels(labels, labels, True)


@pytest.mark.parametrize("with_logits", [True, False])
def test_scores_come_back(scored, tmp_path, with_logits):
    candidates, labels = scored
    candidates = candidates if with_logits else candidates._replace(logits=None)
    save_scores(tmp_path / "new", candidates, labels)
    save_neighbours(tmp_path / "new", *ranking_by(candidates, Weights(0, 1, 1, 9)))
    found, found_labels = load_scores(tmp_path / "new")
    for ours, expected in zip((*found, *found_labels), (*candidates, *labels), strict=True):
        assert np.array_equal(ours, expected)


def test_none(tmp_path):
    with pytest.raises(InputError, match=r"scores\.npz does not exist: run eval_rerank\.py with this temp_dir first"):
        load_scores(tmp_path)


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-100])


def with_arrays(**changes):
    def write(path):
        with np.load(path) as file:
            arrays = dict(file)
        np.savez(
            path,
            **{name: change(arrays[name]) for name, change in changes.items()},
            **{name: array for name, array in arrays.items() if name not in changes},
        )

    return write


def packed(path):
    with np.load(path) as file:
        np.savez_compressed(path, **file)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_off, "cannot be read"),
        (lambda path: path.write_bytes(b"text"), "cannot be read"),
        (with_arrays(logits=lambda array: np.array([{}])), "cannot be read"),
        (with_arrays(logits=lambda array: array[1:]), "do not belong together"),
        (with_arrays(cosines=lambda array: array.astype(int)), "do not belong together"),
        (with_arrays(cosines=lambda a: a[0], chamfer=lambda a: a[0], logits=lambda a: a[0]), "do not belong together"),
        (with_arrays(neighbours=lambda array: array.astype(float)), "do not belong together"),
        (with_arrays(gallery_labels=lambda array: array[None]), "do not belong together"),
        (with_arrays(neighbours=lambda array: array + 1000), "do not belong together"),
        (with_arrays(query_labels=lambda array: array - 5), "do not belong together"),
        (with_arrays(gallery_labels=lambda array: array + 10**12), "do not belong together"),
        (with_arrays(chamfer=lambda array: array * np.float32("nan")), "do not belong together"),
        (packed, "cannot be read \\(its content is packed"),
    ],
)
def test_damaged(scored, tmp_path, damage, message):
    save_scores(tmp_path, *scored)
    damage(tmp_path / NAME)
    with pytest.raises(InputError, match=rf"scores\.npz .*{message}"):
        load_scores(tmp_path)


def test_of_other_queries_than_the_files_beside_it(scored, tmp_path):
    save_scores(tmp_path, *scored)
    other, _, _ = drawn(seed=9)
    save_neighbours(tmp_path, *ranking_by(other, Weights(1, 0, 0, 9)))
    with pytest.raises(InputError, match=r"is of other queries or neighbours than .*nn_inds\.pkl"):
        load_scores(tmp_path)
