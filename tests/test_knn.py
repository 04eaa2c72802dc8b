import numpy as np
import pytest
import torch

from utils import knn
from utils.knn import nearest_neighbours


def plain_neighbours(queries, gallery, k):
    """Sorted squared distances, row by row, the own position left out when there is no gallery."""
    distances, positions = [], []
    for i, query in enumerate(queries):
        row = [
            (float(((query - other) ** 2).sum()), j) for j, other in enumerate(queries if gallery is None else gallery)
        ]
        row = sorted(pair for pair in row if gallery is not None or pair[1] != i)[:k]
        distances.append([d for d, _ in row])
        positions.append([j for _, j in row])
    return np.array(distances), np.array(positions)


@pytest.mark.parametrize("with_gallery", [False, True])
@pytest.mark.parametrize("block", [4096, 7])
def test_exact(monkeypatch, with_gallery, block):
    monkeypatch.setattr(knn, "BLOCK", block)
    queries, gallery = torch.randn(30, 8), torch.randn(20, 8) if with_gallery else None
    distances, positions = nearest_neighbours(queries, gallery, 5)
    expected_distances, expected_positions = plain_neighbours(queries, gallery, 5)
    np.testing.assert_allclose(distances, expected_distances, atol=1e-5)
    np.testing.assert_array_equal(positions, expected_positions)
    assert (distances.dtype, positions.dtype) == (np.float32, np.int64)


def test_among_identical_images_the_query_is_left_out_and_not_its_twin():
    twins = torch.cat((torch.ones(4, 8), torch.randn(3, 8) + 5))
    _, positions = nearest_neighbours(twins, None, 3)
    for i in range(4):
        assert set(positions[i]) == {0, 1, 2, 3} - {i}
    _, nearest = nearest_neighbours(twins, None, 1)
    assert all(nearest[i, 0] in {0, 1, 2, 3} - {i} for i in range(4))


@pytest.mark.parametrize(("with_gallery", "columns"), [(False, 5), (True, 4)])
def test_never_more_columns_than_images(with_gallery, columns):
    gallery = torch.randn(4, 8) if with_gallery else None
    _, positions = nearest_neighbours(torch.randn(6, 8), gallery, 1000)
    assert positions.shape == (6, columns)
    assert all(len(set(row)) == columns for row in positions.tolist())
    assert positions.min() >= 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_answers_like_the_cpu():
    queries = torch.randn(500, 32)
    expected, got = nearest_neighbours(queries, None, 10), nearest_neighbours(queries.cuda(), None, 10)
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-4, atol=1e-4)
    assert (got[1] == expected[1]).mean() > 0.99
