"""The reference implementation, by which tests check answers, too, and the benchmarks themselves."""

import os
import random
import re
import sys
from functools import partial
from importlib import import_module
from multiprocessing import get_context

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.attention import SDPBackend
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import measure, memory, reference, run
from benchmarks.__main__ import BENCHMARKS, main
from benchmarks.bounds import bounds_of, embedding_kernels, scoring_kernels
from models.matcher import Matcher
from models.position_encoding import sine_position_encoding
from sop.dataset import ImageSet
from sop.images.transforms import test_transform as make_test_transform
from sop.samplers import TripletSampler
from sop.splits import Split
from tests.reference import published_model
from utils.retrieval.pair_scoring import rerank


@pytest.mark.parametrize(("queries", "columns", "shape"), [(1, 1, (3, 3)), (5, 7, (2, 5)), (9, 9, (1, 1))])
@pytest.mark.parametrize("normalize_before", [False, True])
def test_reranking(queries, columns, shape, normalize_before):
    model = published_model(6, arch="resnet18", ert_normalize_before=normalize_before).eval()
    query_maps, gallery_maps = torch.randn(queries, 128, *shape), torch.randn(11, 128, *shape)
    neighbours = torch.stack([torch.randperm(11)[:columns] for _ in range(queries)])
    expected, got = (f(model, query_maps, gallery_maps, neighbours) for f in (reference.rerank, rerank))
    np.testing.assert_allclose(got[0], expected[0], atol=2e-5 * max(1.0, np.abs(expected[0]).max()))
    np.testing.assert_array_equal(got[1], expected[1])


@pytest.mark.parametrize("normalize_before", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_scores_are_those_of_torchs_encoder(activation, normalize_before):
    matcher = Matcher(16, 2, 3, 40, 0.0, activation, normalize_before)
    query, candidate = torch.randn(3, 16, 2, 5), torch.randn(3, 16, 4, 3)
    tokens = torch.empty(3, 24, 16)
    for i in range(3):
        for start, maps, row in ((1, query, 2), (12, candidate, 3)):
            code = sine_position_encoding(*maps.shape[1:])
            encoded = (maps[i] + code).flatten(1).T + matcher.seg_encoder.weight[row]
            tokens[i, start : start + len(encoded)] = encoded
        tokens[i, 0], tokens[i, 11] = matcher.seg_encoder.weight[0], matcher.seg_encoder.weight[1]
    torch.testing.assert_close(reference.pair_tokens(matcher, query, candidate), tokens)
    expected = matcher.classifier(matcher.encoder(tokens)[:, 0])[:, 0]
    torch.testing.assert_close(reference.score(matcher, query, candidate), expected, rtol=1e-5, atol=1e-5)


def test_embedding():
    model, images = published_model(6, arch="resnet18").eval(), torch.rand(3, 3, 64, 96)
    torch.testing.assert_close(model.embedder()(images)[0], reference.embed(model, images), rtol=1e-4, atol=1e-5)


def test_pixels_are_identical(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.JPG", "JPEG")
    images = ImageSet(tmp_path, Split(["a.JPG"], [0]), {0: 0}, make_test_transform(112))
    assert torch.equal(images[0][0].float() / 255, reference.load(tmp_path / "a.JPG", 112))


def test_triplets_have_the_same_distribution():
    labels = np.array([0, 0, 0, 1, 1, 2, 2, 2, 3])
    neighbours = np.array([[j for j in range(9) if j != i] for i in range(9)])
    sampler, rounds = TripletSampler(labels, neighbours, 30, 0), 3000
    random.seed(0)
    counts = []
    for draw in (
        lambda number: np.concatenate(list(sampler.batches(np.random.default_rng(number)))).reshape(-1, 3),
        lambda number: np.array(list(reference.triplets(labels.tolist(), neighbours.tolist()))),
    ):
        triplets = np.concatenate([draw(number) for number in range(rounds)])
        counts.append(np.histogramdd(triplets, bins=[np.arange(10)] * 3)[0])
    assert ((counts[0] > 0) == (counts[1] > 0)).all()
    seen = counts[0] > 0
    statistic = ((counts[0] - counts[1])[seen] ** 2 / (counts[0] + counts[1])[seen]).sum()
    freedom = seen.sum() - 8  # each anchor's total is given
    assert abs(statistic - freedom) < 6 * np.sqrt(2 * freedom)


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_memory_of_an_evaluation(monkeypatch, dtype, size):
    lots = {"embedded": [], "scored": []}
    embed, score = memory.RerankingNetwork.embedder, memory.Matcher.score

    def counted_embedder(model, dtype):
        def embed_in_float32(images):  # the other one is slow on most CPUs
            lots["embedded"].append(len(images))
            descriptors, maps = embed(model, torch.float32)(images)
            return descriptors, maps.to(dtype)

        return embed_in_float32

    monkeypatch.setattr(memory.RerankingNetwork, "embedder", counted_embedder)
    monkeypatch.setattr(memory.Matcher, "score", lambda *given: lots["scored"].append(len(given[1])) or score(*given))
    maps, peak, seconds = memory.measure(dtype, images=30)
    assert maps == 30 * 128 * 49 * size
    assert peak > maps
    assert seconds > 0
    assert lots == {"embedded": [8], "scored": [40]}  # the first lot of each, of 4 and of 38


def test_maps_in_a_file_are_no_memory_of_the_evaluation(tmp_path, monkeypatch):
    printed = []
    monkeypatch.setattr("utils.store.feature_cache.print", lambda line: printed.append(line), raising=False)
    for _ in range(2):
        maps, _, _ = memory.measure(torch.float32, str(tmp_path), 30)
    (store,) = tmp_path.iterdir()
    assert maps == np.load(store / "maps.npy", mmap_mode="r").nbytes == 30 * 128 * 49 * 4
    assert printed == [f"descriptors of 30 images are taken from {store}"]


def noting(path, device):
    def note(name):
        with path.open("a") as file:
            file.write(f"{name} {os.getpid()}\n")

    variants = {name: partial(note, name) for name in ("reference", "ours", "limit ours")}
    return measure.Stage("noting", 12, "notes", variants, repetitions=2, warm_up=3)


def test_variants_take_turns_each_in_a_process_of_its_own(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(measure, "get_context", lambda method: get_context("fork"))  # starts in no time
    stage, costs = measure.costs_of(partial(noting, tmp_path / "notes"), torch.device("cpu"))
    names, processes = zip(
        *(line.rsplit(" ", 1) for line in (tmp_path / "notes").read_text().splitlines()), strict=True
    )
    assert list(names) == ["reference", "ours", "limit ours"] * 5
    assert len(set(processes)) == 3
    assert processes == processes[:3] * 5
    assert [len(costs[name].times) for name in names[:3]] == [2, 2, 2]
    measure.print_rows(stage, costs)
    assert re.fullmatch(r"\| noting, ours \| 12 \| [\d,]+ notes/s \| [^\n]+ % \|[^\n]+\|\n", capsys.readouterr().out)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks", "run", "--device", "cuda"])
    with pytest.raises(SystemExit):
        main()
    assert "there is no CUDA device" in capsys.readouterr().err


def test_the_entry_point(monkeypatch, capsys):
    for arguments, code in (([], 2), (["walk"], 2), (["--help"], 0)):
        monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments])
        assert main() == code
        assert "usage: python -m benchmarks NAME" in capsys.readouterr().out
    for name in BENCHMARKS:
        assert callable(import_module(f"benchmarks.{name}").main)


def test_bounds_of_a_card_follow_from_its_bytes_and_flops():
    with torch.device("meta"):
        network = run.build().eval()
    with FlopCounterMode(display=False) as counter:
        network.embedder()(torch.empty(1, 3, 224, 224, device="meta"))
    in_products = 2 * 2048 * 128  # of the global descriptor, which the bound leaves out
    assert sum(flops for flops, _ in embedding_kernels(network, 2)) == counter.get_total_flops() - in_products
    maps = torch.zeros(1, 128, 7, 7)
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(SDPBackend.MATH):
        Matcher(128, 4, 6, 1024).eval()(None, maps, None, maps)
    assert sum(flops for flops, _ in scoring_kernels(2, True)) == pytest.approx(counter.get_total_flops(), rel=0.01)
    tf32, bf16 = bounds_of("NVIDIA H200", network)
    assert "1.4 s for SOP's test photos" in bf16 and "2.7 s for SOP's test photos" in tf32
    assert bounds_of("an unknown card", network) == []
