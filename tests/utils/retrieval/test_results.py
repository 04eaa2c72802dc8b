import hashlib

import numpy as np
import pytest

from tests.utils.retrieval.test_fusion import drawn
from utils.errors import InputError
from utils.retrieval.results import NAME, Labels, keep_scores, load_scores, save_scores


@pytest.fixture
def scored():
    candidates, labels, _ = drawn()
    return candidates, Labels(labels, labels, True)


@pytest.mark.parametrize("with_logits", [True, False])
def test_scores_round_trip(scored, tmp_path, with_logits):
    candidates, labels = scored
    candidates = candidates if with_logits else candidates._replace(logits=None)
    save_scores(tmp_path / "new", candidates, labels)
    found, found_labels = load_scores(tmp_path / "new")
    for ours, expected in zip((*found, *found_labels), (*candidates, *labels), strict=True):
        assert np.array_equal(ours, expected)


def test_missing_scores(tmp_path):
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
def test_damaged_scores(scored, tmp_path, damage, message):
    save_scores(tmp_path, *scored)
    damage(tmp_path / NAME)
    with pytest.raises(InputError, match=rf"scores\.npz .*{message}"):
        load_scores(tmp_path)


def test_kept_scores_are_known_by_their_sum(scored, tmp_path, capsys):
    digest = keep_scores(tmp_path / "new", *scored)
    assert digest == hashlib.md5((tmp_path / "new" / NAME).read_bytes()).hexdigest()
    (tmp_path / "file").write_text("")
    assert keep_scores(tmp_path / "file", *scored) is None
    assert "scores are not kept: " in capsys.readouterr().out
