"""How it is computed: bars, sizes of batches, precision, devices."""

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.backends import mkldnn
from torch.backends.cuda import matmul

from models.matcher import Matcher
from models.network import Embedder
from rrt import Features, InputError, Reranker
from rrt.arguments import device_of
from utils.retrieval import pair_scoring
from utils.runtime.device import MicroBatches, is_out_of_memory
from utils.runtime.precision import dtype_of, float32_throughout

MPS = torch.device("mps")
ROWS = np.arange(7)[None].repeat(7, axis=0)


@pytest.fixture
def sizes(monkeypatch) -> dict[str, list[int]]:
    """The numbers of images embedded, and of pairs scored, at a time."""
    noted: dict[str, list[int]] = {"images": [], "pairs": []}
    embed, score = Embedder.__call__, Matcher.score

    def embedded(embedder, images):
        noted["images"].append(len(images))
        return embed(embedder, images)

    def scored(matcher, queries, candidates):
        noted["pairs"].append(len(queries))
        return score(matcher, queries, candidates)

    monkeypatch.setattr(Embedder, "__call__", embedded)
    monkeypatch.setattr(Matcher, "score", scored)
    return noted


def test_sizes_of_batches(reranker, paths, sizes):
    expected = reranker.embed(paths)
    assert sizes.pop("images") == [7]
    sizes["images"] = []
    features = reranker.embed(paths, batch_size=np.int8(3))
    assert sizes["images"] == [3, 3, 1]
    for found, same in zip(features, expected, strict=True):
        torch.testing.assert_close(found, same, rtol=0, atol=1e-5)
    whole = reranker.rerank(features, features, ROWS)
    assert sizes["pairs"] == [40, 9]
    sizes["pairs"].clear()
    ranking = reranker.rerank(features, features, ROWS, batch_size=20)
    assert sizes["pairs"] == [20, 20, 9]
    np.testing.assert_allclose(ranking.scores, whole.scores, rtol=0, atol=1e-5)
    for call in (reranker.rank, lambda *images, **options: reranker.score(paths[:1] * 7, images[1], **options)):
        for noted in sizes.values():
            noted.clear()
        call(paths[0], paths, batch_size=4)
        assert sizes["images"][-2:] == [4, 3] and sizes["pairs"] == [4, 3]


def test_bars_show_rates_and_only_where_asked_for(reranker, paths, capfd):
    features = reranker.embed(paths)
    calls = {
        lambda **options: reranker.embed(paths, **options): ["Embedding"],
        lambda **options: reranker.rerank(features, features, ROWS, **options): ["Reranking"],
        lambda **options: reranker.rank(paths[0], features, **options): ["Embedding", "Reranking"],
        lambda **options: reranker.score(features, features, fusion="logit", **options): ["Reranking"],
    }
    for call, bars in calls.items():
        call()
        assert capfd.readouterr() == ("", "")
        call(progress=True)
        output, errors = capfd.readouterr()
        ends = re.findall(r"(\w+): 100%[^\r\n]*(?:image|pair)(?:/s)?]", errors)
        assert list(dict.fromkeys(ends)) == bars and not output


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision(reranker, paths, precision):
    dtype, matcher = torch.bfloat16 if precision == "bf16" else torch.float16, reranker.network.matcher
    exact, features = reranker.embed(paths), reranker.embed(paths, precision=precision)
    descriptors, maps = reranker.network.embedder(dtype)(torch.stack([reranker.pixels(path) for path in paths]))
    for found, same, near in zip(features, (F.normalize(descriptors, dim=1), maps.float()), exact, strict=True):
        assert found.dtype == torch.float32 and torch.equal(found, same) and not torch.equal(found, near)
        assert (found - near).abs().max() < 0.1 * near.abs().max()
    queries, candidates = Features(*(part[:1].expand(7, *part.shape[1:]) for part in exact)), exact
    with torch.inference_mode():
        halved = matcher.computing_in(dtype)
        logits = halved.score(halved.encode_queries(queries.maps), halved.encode_candidates(candidates.maps))
    found = reranker.score(queries, candidates, precision=precision)
    torch.testing.assert_close(found, logits, rtol=0, atol=1e-3 * float(logits.abs().max()))
    assert not torch.equal(found, reranker.score(queries, candidates))
    for same, near in zip(reranker.embed(paths), exact, strict=True):
        assert torch.equal(same, near)


def test_tf32_is_for_cuda_and_for_the_call(reranker, paths, monkeypatch):
    before, noted = [matmul.fp32_precision, mkldnn.matmul.fp32_precision], []
    embed, score = Embedder.__call__, pair_scoring._on_device

    def note(function):
        def noting(*values):
            noted.append((matmul.fp32_precision, mkldnn.matmul.fp32_precision))
            return function(*values)

        return noting

    monkeypatch.setattr(Embedder, "__call__", note(embed))
    monkeypatch.setattr(pair_scoring, "_on_device", note(score))
    reranker.rank(paths[0], paths[1:2], precision="tf32")
    assert set(noted) == {("tf32", "ieee")} and len(noted) == 4
    assert [matmul.fp32_precision, mkldnn.matmul.fp32_precision] == before
    noted.clear()
    reranker.rank(*paths[:2])
    assert set(noted) == {("ieee", "ieee")}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"progress": 1}, "progress=1: give True or False"),
        ({"batch_size": 0}, "batch_size=0: give a whole number from 1, or None"),
        ({"batch_size": 2.0}, "batch_size=2.0: give a whole number"),
        ({"precision": "fp8"}, "precision='fp8' is unknown: choose from 'fp32', 'tf32', 'bf16', 'fp16'"),
        ({"precision": None}, "precision=None is unknown: choose from"),
        ({"precision": ["fp32"]}, r"precision=\['fp32'\] is unknown: choose from"),
    ],
)
def test_invalid_options(reranker, paths, options, message):
    features = reranker.embed(paths[:2])
    for call in (
        lambda: reranker.embed(paths, **options),
        lambda: reranker.rank(features[0], features, **options),
        lambda: reranker.score(features, features, **options),
        lambda: reranker.rerank(features, features, [[1], [0]], **options),
    ):
        with pytest.raises(InputError, match=message):
            call()


def test_mps_where_torch_has_it(reranker, monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert device_of("mps") == MPS and device_of(None).type != "mps"
    with pytest.raises(InputError, match=r"device='mps:1': give .* 1 MPS devices"):
        device_of("mps:1")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"^device='mps': give 'cpu', 'cuda' or 'mps'; torch sees .* 0 MPS devices"):
        Reranker(reranker.network, reranker.settings, device="mps")


def test_what_is_cudas_is_not_chosen_for_mps(monkeypatch):
    assert dtype_of("fp32", MPS) == torch.float32
    for precision in ("tf32", "bf16", "fp16"):
        with pytest.raises(InputError, match=f"precision={precision}: it was never tried on device=mps, set fp32"):
            dtype_of(precision, MPS)
    with torch.autocast("mps", torch.float16), float32_throughout():
        assert not torch.is_autocast_enabled("mps")
    monkeypatch.setattr(torch.Tensor, "pin_memory", None)
    assert pair_scoring._on_device(torch.ones(2), torch.device("meta")).device.type == "meta"
    assert MicroBatches(lambda images: [images], MPS).pixels > 0
    assert min(table["mps"] for table in (pair_scoring.PAIRS_AT_ONCE, pair_scoring.BLOCK_BYTES)) > 0
    assert is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"))
