from types import SimpleNamespace

import faiss
import numpy as np
import pytest
import torch

from utils.errors import InputError
from utils.retrieval import knn
from utils.retrieval.knn import make_index, nearest_neighbours

GPU_SEARCHES = torch.cuda.is_available() and faiss.get_num_gpus() > 0


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
def test_exact_search(monkeypatch, with_gallery, block, device):
    monkeypatch.setattr(knn, "BLOCK", block)
    queries, gallery = torch.randn(30, 8), torch.randn(20, 8) if with_gallery else None
    distances, positions = nearest_neighbours(queries.to(device), None if gallery is None else gallery.to(device), 5)
    expected_distances, expected_positions = plain_neighbours(queries, gallery, 5)
    np.testing.assert_allclose(distances, expected_distances, atol=1e-5)
    np.testing.assert_array_equal(positions, expected_positions)
    assert (distances.dtype, positions.dtype) == (np.float32, np.int64)


def test_self_match_is_dropped_among_duplicates(device):
    twins = torch.cat((torch.ones(4, 8), torch.randn(3, 8) + 5)).to(device)
    _, positions = nearest_neighbours(twins, None, 3)
    for i in range(4):
        assert set(positions[i]) == {0, 1, 2, 3} - {i}
    _, nearest = nearest_neighbours(twins, None, 1)
    assert all(nearest[i, 0] in {0, 1, 2, 3} - {i} for i in range(4))


@pytest.mark.parametrize(("with_gallery", "columns"), [(False, 5), (True, 4)])
def test_fewer_images_than_k(with_gallery, columns):
    gallery = torch.randn(4, 8) if with_gallery else None
    _, positions = nearest_neighbours(torch.randn(6, 8), gallery, 1000)
    assert positions.shape == (6, columns)
    assert all(len(set(row)) == columns for row in positions.tolist())
    assert positions.min() >= 0


@pytest.mark.parametrize("with_gallery", [False, True])
@pytest.mark.parametrize("index", ["IVF4,Flat;nprobe=4", "HNSW16;efSearch=200", "PCA8,Flat"])
def test_exhaustive_index_equals_exact_search(capsys, with_gallery, index):
    queries, gallery = torch.randn(300, 8), torch.randn(200, 8) if with_gallery else None
    exact, found = nearest_neighbours(queries, gallery, 5), nearest_neighbours(queries, gallery, 5, index)
    np.testing.assert_allclose(found[0], exact[0], atol=1e-4)
    np.testing.assert_array_equal(found[1], exact[1])
    assert (found[0].dtype, found[1].dtype) == (np.float32, np.int64)
    expected = f"knn_index={index}: finds 100.0 % of the exact first 5 neighbours (sample of 300 queries)\n"
    assert capsys.readouterr().out == expected


@pytest.mark.parametrize("sample", [1000, 50])
def test_recall_of_an_approximate_index(monkeypatch, capsys, sample):
    monkeypatch.setattr(knn, "SAMPLE", sample)
    queries = torch.randn(400, 16)
    _, exact = plain_neighbours(queries, None, 3)
    _, found = nearest_neighbours(queries, None, 3, "IVF8,Flat;nprobe=2")
    recall = 100 * np.mean([len(set(a) & set(b)) / 3 for a, b in zip(exact, found, strict=True)])
    printed = capsys.readouterr().out
    value = float(printed.split(": finds ")[1].split(" %")[0])
    assert f"(sample of {min(sample, 400)} queries)" in printed
    assert 10 < value < 95
    assert value == pytest.approx(recall, abs=0.05 if sample > 400 else 15)
    assert not (found == np.arange(400)[:, None]).any()


def test_approximate_index_that_misses_the_self_match():
    queries = torch.randn(300, 8)
    _, positions = nearest_neighbours(queries, None, 10, "PQ2x4")  # sixteen codes for each half
    assert positions.shape == (300, 10)
    assert not (positions == np.arange(300)[:, None]).any()
    assert all(len(set(row)) == 10 for row in positions.tolist())


def test_incomplete_results_are_searched_exactly(capsys):
    far = torch.cat((torch.randn(297, 8), torch.randn(3, 8) + 100))  # a list of three images, found alone
    exact, found = nearest_neighbours(far, None, 20), nearest_neighbours(far, None, 20, "IVF2,Flat")
    np.testing.assert_allclose(found[0], exact[0], rtol=1e-3)
    assert set(found[1][297, :2]) == {298, 299}
    assert found[1].min() >= 0
    np.testing.assert_array_equal(found[1][:297], exact[1][:297])
    assert "3 of 300 queries found fewer than 20 neighbours and were searched exactly" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("index", "reason"),
    [
        ("IVF64", "could not parse index string IVF64"),
        ("", "could not parse index string"),
        ("Flat;nprobe=3", "could not set parameter nprobe"),
        ("IVF4,Flat;nprobe", "could not interpret parameter"),
        ("PQ5", "should be a multiple of the number of subquantizers"),
        ("IVF64,Flat", r"Number of training points \(50\) should be at least .* clusters \(64\)"),
        ("IVF4,Flat;nprobe=0", "nprobe > 0"),
    ],
)
def test_unusable_index(index, reason):
    with pytest.raises(
        InputError, match=rf"knn_index='{index}' cannot be used: [^\n]*{reason}.*'Flat' for exact search$"
    ):
        nearest_neighbours(torch.randn(50, 8), None, 3, index)


def test_index_is_not_a_string():
    with pytest.raises(InputError, match="knn_index=64 is no text: give 'Flat'"):
        make_index(64, 8)


class FullGPU:
    """Stands in for what faiss has of a GPU without room, in the words of faiss 1.15."""

    class StandardGpuResources:
        def setTempMemory(self, size):
            assert size <= 1 << 28

    error = (
        "Error in virtual void* faiss::gpu::StandardGpuResourcesImpl::allocMemory(const AllocRequest&) at "
        "/faiss/gpu/StandardGpuResources.cpp:530: Error: 'err == cudaSuccess' failed: StandardGpuResources: alloc fail "
        "type FlatData dev 0 space Device stream 0x1 size 512 bytes (cudaMalloc error out of memory [2])"
    )

    def index_cpu_to_gpu(self, *given):
        raise RuntimeError(self.error)


def test_gpu_out_of_memory(monkeypatch):
    full = FullGPU()
    monkeypatch.setattr(knn.faiss, "get_num_gpus", lambda: 1, raising=False)
    monkeypatch.setattr(knn.faiss, "StandardGpuResources", FullGPU.StandardGpuResources, raising=False)
    monkeypatch.setattr(knn.faiss, "index_cpu_to_gpu", full.index_cpu_to_gpu, raising=False)
    message = r"^faiss is out of memory on the GPU: free the device, or set cpu=True \(StandardGpuResources: alloc fail"
    with pytest.raises(InputError, match=message):
        knn.exact_index(torch.randn(9, 4), torch.device("cuda"))
    full.error = "another error"
    with pytest.raises(RuntimeError, match="another error"):
        knn.exact_index(torch.randn(9, 4), torch.device("cuda"))


def test_gallery_is_sharded_over_gpus(monkeypatch):
    gallery, queries, calls = torch.randn(31, 8), torch.randn(9, 8), []
    parts = [faiss.IndexFlatL2(8) for _ in range(3)]

    class Resources:
        def setTempMemory(self, size):
            self.size = size

    def shards(resources, index, options):
        """What faiss makes for GPUs, of parts on the CPU."""
        calls.append(([of_gpu.size for of_gpu in resources], index.ntotal, options.shard))
        spread = faiss.IndexShards(8, True, True)
        for part in parts:
            spread.add_shard(part)
        return spread

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 3, raising=False)
    monkeypatch.setattr(faiss, "StandardGpuResources", Resources, raising=False)
    monkeypatch.setattr(faiss, "GpuMultipleClonerOptions", SimpleNamespace, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_gpu_multiple_py", shards, raising=False)
    index = knn.exact_index(gallery, torch.device("cuda"))
    assert calls == [([knn.TEMP_MEMORY] * 3, 0, True)]
    assert [part.ntotal for part in parts] == [10, 10, 11]
    distances, positions = knn._search(index, queries, None, 20)  # more than a part has
    expected = plain_neighbours(queries, gallery, 20)
    np.testing.assert_allclose(distances, expected[0], atol=1e-5)
    np.testing.assert_array_equal(positions, expected[1])


@pytest.mark.skipif(not GPU_SEARCHES, reason="needs a CUDA device, and a faiss that searches on it")
def test_gpu_equals_cpu():
    queries = torch.randn(9000, 32)
    expected, got = nearest_neighbours(queries, None, 1000), nearest_neighbours(queries.cuda(), None, 1000)
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-4, atol=1e-4)
    assert (got[1] == expected[1]).mean() > 0.99
    assert nearest_neighbours(queries.cuda(), None, 3000)[1].shape == (9000, 3000)  # more than faiss finds on a GPU


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("index", ["Flat", "HNSW8"])
def test_nonfinite_descriptors(value, index):
    good, bad = torch.rand(9, 4), torch.rand(9, 4)
    bad[6, 2] = value
    with pytest.raises(InputError, match=r"^the descriptor of query image 6 is not finite$"):
        nearest_neighbours(bad, None, 3, index)
    with pytest.raises(InputError, match=r"^the descriptor of gallery image 6 is not finite$"):
        nearest_neighbours(good, bad, 3, index)


def test_self_search_of_one_image():
    with pytest.raises(InputError, match="one image has no neighbours among itself: give a set of two or more"):
        nearest_neighbours(torch.rand(1, 4), None, 3)
    assert nearest_neighbours(torch.rand(1, 4), torch.rand(1, 4), 3)[1].tolist() == [[0]]


def test_results_exceed_memory(monkeypatch):
    monkeypatch.setattr("utils.runtime.memory.memory_limit", lambda: 1000)
    with pytest.raises(
        InputError, match=r"^9 neighbours of 10 queries take 1\.2e-06 GB, .* memory: lower dataset\.recalls"
    ):
        nearest_neighbours(torch.rand(10, 4), None, 100)
