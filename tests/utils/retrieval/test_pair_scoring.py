import copy
import os

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import reference
from models.matcher import Matcher
from utils.errors import InputError
from utils.retrieval import pair_scoring
from utils.retrieval.chamfer import Chamfer
from utils.retrieval.pair_scoring import matcher_for, pair_scores, rerank
from utils.store.array_file import StoredRows
from utils.store.store import Store


class Model(nn.Module):
    def __init__(self, normalize_before=False):
        super().__init__()
        self.matcher = Matcher(16, 2, 2, 32, normalize_before=normalize_before).eval()


@pytest.mark.parametrize("pairs", [1, 7, 1000])
@pytest.mark.parametrize(("queries", "columns"), [(1, 1), (1, 6), (5, 1), (11, 6)])
@pytest.mark.parametrize("normalize_before", [False, True])
@torch.no_grad()
def test_equals_loop_over_pairs(monkeypatch, pairs, queries, columns, normalize_before, device):
    monkeypatch.setitem(pair_scoring.PAIRS_AT_ONCE, device.type, pairs)
    monkeypatch.setattr(pair_scoring, "BATCHES_PER_SYNC", 3)
    model = Model(normalize_before)
    query_maps, gallery_maps = torch.randn(queries, 16, 3, 2), torch.randn(9, 16, 3, 2)
    neighbours = torch.stack([torch.randperm(9)[:columns] for _ in range(queries)])
    scores, positions = rerank(copy.deepcopy(model).to(device), query_maps, gallery_maps, neighbours)
    for i in range(queries):
        row = [
            float(reference.score(model.matcher, query_maps[i : i + 1], gallery_maps[j : j + 1])) for j in neighbours[i]
        ]
        order = sorted(range(columns), key=lambda place, row=row: -row[place])
        np.testing.assert_allclose(scores[i], [row[place] for place in order], atol=1e-5)
        assert positions[i].tolist() == neighbours[i][order].tolist()
    assert (scores.dtype, positions.dtype) == (np.float32, np.int64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_feature_maps_beyond_device_memory_stay_in_place(monkeypatch, dtype, device):
    model, neighbours = Model().to(device), torch.randint(0, 9, (7, 5))
    query_maps, gallery_maps = torch.randn(7, 16, 3, 2).to(dtype), torch.randn(9, 16, 3, 2).to(dtype)
    expected = rerank(model, query_maps, gallery_maps, neighbours)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 1 << 30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", torch.cuda.memory_allocated)
    found = rerank(model, query_maps, gallery_maps, neighbours)
    np.testing.assert_allclose(found[0], expected[0], atol=1e-6)
    np.testing.assert_array_equal(found[1], expected[1])


@pytest.mark.parametrize("kept", ["queries", "gallery", "both", "one for both"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("block", "pairs"), [(1, 1), (4000, 7)])  # bytes, and the pairs that are scored at a time then
def test_feature_maps_from_file_equal_memory(monkeypatch, tmp_path, kept, dtype, block, pairs, device):
    monkeypatch.setitem(pair_scoring.PAIRS_AT_ONCE, device.type, pairs)
    monkeypatch.setitem(pair_scoring.BLOCK_BYTES, device.type, block)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 1 << 30))  # a GPU reads them block by block
    monkeypatch.setattr(torch.cuda, "memory_reserved", torch.cuda.memory_allocated)
    query_maps, gallery_maps = torch.randn(11, 16, 3, 2).to(dtype), torch.randn(50, 16, 3, 2).to(dtype)
    if kept == "one for both":
        query_maps = gallery_maps
    neighbours, model = torch.randint(0, 50, (len(query_maps), 6)), Model().to(device)
    scorers = [matcher_for(model, dtype), Chamfer()]
    expected = pair_scores(model, query_maps, gallery_maps, neighbours, scorers)
    monkeypatch.setitem(pair_scoring.PAIRS_AT_ONCE, device.type, 7)
    in_files = [stored(tmp_path / f"{number}", maps) for number, maps in enumerate((query_maps, gallery_maps))]
    if kept == "one for both":
        found = pair_scores(model, in_files[0], in_files[0], neighbours, scorers)
    else:
        queries = query_maps if kept == "gallery" else in_files[0]
        gallery = gallery_maps if kept == "queries" else in_files[1]
        found = pair_scores(model, queries, gallery, neighbours, scorers)
    tolerance = 0 if device.type == "cpu" else 1e-5 if dtype == torch.float32 else 0.03  # other lots, other products
    for ours, plain in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, plain, rtol=0, atol=tolerance * float(plain.abs().max()))


def stored(folder, maps):
    folder.mkdir()
    store = Store(folder, {"maps": 4}, len(maps), {})
    store.write(0, [[maps]])
    assert store.count_valid_rows(["maps"]) == len(maps)
    return store.tensors["maps"]


def test_blocks_read_each_feature_map_once_in_order(monkeypatch, tmp_path):
    monkeypatch.setitem(pair_scoring.PAIRS_AT_ONCE, "cpu", 5)
    monkeypatch.setitem(pair_scoring.BLOCK_BYTES, "cpu", 10 * 16 * 6 * 4)
    maps, read = torch.randn(30, 16, 3, 2), []
    kept = stored(tmp_path / "maps", maps)
    take = StoredRows.read
    monkeypatch.setattr(StoredRows, "read", lambda self, rows, out: read.append(rows.tolist()) or take(self, rows, out))
    neighbours = torch.randint(0, 30, (10, 4))
    pair_scores(Model(), maps, kept, neighbours, [Chamfer()])
    assert read == [sorted(set(part.tolist())) for part in neighbours.flatten().split(10)]


def test_unreadable_file_ends_scoring(tmp_path):
    kept = stored(tmp_path / "maps", torch.randn(30, 16, 3, 2))
    os.truncate(kept.path, 200)
    with pytest.raises(InputError, match="has become shorter"):
        pair_scores(Model(), kept, kept, torch.randint(0, 30, (30, 4)), [Chamfer()])


def test_equal_logits_keep_their_order(device):
    model, maps = Model().to(device), torch.ones(4, 16, 2, 2)
    _, positions = rerank(model, maps, maps, torch.tensor([[2, 0, 3, 1]] * 4))
    assert positions.tolist() == [[2, 0, 3, 1]] * 4


@pytest.mark.parametrize("fitting", [1, 7])
def test_batches_shrink_when_out_of_memory(monkeypatch, fitting, device):
    model, maps, neighbours = Model().to(device), torch.randn(6, 16, 2, 2), torch.randint(0, 6, (6, 5))
    expected = rerank(model, maps, maps, neighbours)
    score = Matcher.score

    def small(self, *pair):
        if len(pair[1]) > fitting:
            raise torch.OutOfMemoryError("full")
        return score(self, *pair)

    monkeypatch.setattr(Matcher, "score", small)
    scores, positions = rerank(model, maps, maps, neighbours)
    np.testing.assert_allclose(scores, expected[0], atol=1e-5)
    np.testing.assert_array_equal(positions, expected[1])
    fitting = 0
    with pytest.raises(InputError, match="out of memory for a single pair: free the device, or set cpu=True"):
        rerank(model, maps, maps, neighbours)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nonfinite_score_names_the_pair(value):
    maps = torch.randn(4, 16, 3, 2)
    maps[2, 0, 0, 0] = value
    neighbours = torch.tensor([[1, 3], [0, 3], [0, 1], [1, 2]])
    with pytest.raises(
        InputError, match=r"score of query 2 with its candidate 0 is NaN or infinite: set another precis"
    ):
        rerank(Model(), maps, maps, neighbours)
