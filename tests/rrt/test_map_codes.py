"""Kinds of local maps in an index: their bytes and values, and what an index does with each."""

import json

import numpy as np
import pytest
import torch

from rrt import Features, InputError, Reranker
from rrt.__main__ import main
from rrt.index import Index, update
from rrt.index_table import KEY, TABLE, Content, array_of, content_of, engine, existing_table
from rrt.map_codes import decode, encode
from rrt.words import MAPS
from tests.rrt.test_own_weights import OWN

SHAPE = (13, 3, 2)  # 78 numbers: no whole bytes of bits


@pytest.fixture
def index(tmp_path):
    """The folder of an index that is not there yet."""
    return tmp_path / "index"


@pytest.fixture
def maps() -> torch.Tensor:
    """Maps of zeros, of numbers about 0, and of none below 0, whose patches have scales of their own."""
    drawn = np.random.default_rng(0).standard_normal((3, *SHAPE)) * np.geomspace(1e-3, 1e5, 6).reshape(3, 2)
    drawn[0], drawn[2] = 0, drawn[2].clip(min=0)
    return torch.from_numpy(drawn.astype(np.float32))


def by_formula(maps: np.ndarray, kind: str) -> np.ndarray:
    """The values that are kept, patch by patch, in float64."""
    if kind == "float16":
        return maps.astype(np.float16)
    kept = np.zeros(maps.shape)
    for i, row, column in np.ndindex(len(maps), *maps.shape[2:]):
        patch = maps[i, :, row, column].astype(np.float64)
        if kind == "int8":
            scale = max(abs(patch)) / 127
            kept[i, :, row, column] = np.round(patch / scale) * scale if scale else 0
        else:
            mean = sum(patch) / len(patch)
            kept[i, :, row, column] = mean + np.where(patch > mean, 1, -1) * np.mean(abs(patch - mean))
    return kept


@pytest.mark.parametrize(
    ("kind", "dtype", "width"),
    [("float16", np.float16, 78), ("int8", np.uint8, 6 * 4 + 78), ("binary", np.uint8, 2 * 6 * 4 + 10)],
)
def test_values_and_bytes(maps, kind, dtype, width):
    if kind == "float16":
        maps = maps.clamp(-60000, 60000)
    rows = encode(maps, kind, "abc")
    assert (rows.dtype, rows.shape) == (dtype, (3, width))
    decoded = decode(rows, kind, SHAPE)
    assert decoded.dtype == torch.float32
    np.testing.assert_allclose(decoded, by_formula(maps.numpy(), kind), rtol=1e-6, atol=1e-9)
    assert not decoded[0].any()
    assert torch.equal(decode(rows[[2, 0]], kind, SHAPE), decoded[[2, 0]])


def test_the_published_size():
    maps = torch.ones(1, 128, 7, 7)
    assert [encode(maps, kind, "a").nbytes for kind in MAPS] == [12544, 6468, 1176]


@pytest.mark.parametrize("kind", MAPS)
def test_an_index_of_each_kind(reranker, index, paths, kind):
    assert update(index, paths[:4], reranker, maps=kind)[:2] == (4, 4)
    assert update(index, paths, reranker)[:2] == (7, 3)  # keeps its kind
    table = existing_table(index)
    features = reranker.embed(paths)
    shape = list(features.maps.shape[1:])
    assert content_of(table) == Content(3, reranker.digest(), shape, kind)
    encoded = encode(features.maps, kind, list(map(str, paths)))
    rows = table.search().select(["path", "map"]).to_arrow().sort_by("path")
    assert array_of(rows, "map").dtype == encoded.dtype and array_of(rows, "map").shape == encoded.shape

    gallery = Features(features.descriptors, decode(array_of(rows, "map"), kind, shape))
    torch.testing.assert_close(gallery.maps, decode(encoded, kind, shape), rtol=1e-3, atol=1e-3)
    (results,) = Index(index, device="cpu").search(features[2], top=7, rerank=7, fusion=(1, 2))
    expected = reranker.rank(features[2], gallery, fusion=(1, 2))
    assert [result.photo for result in results] == [str(paths[match.index]) for match in expected]
    np.testing.assert_allclose([r.score for r in results], [m.score for m in expected], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", MAPS)
def test_scores_by_binary_maps_are_not_calibrated(reranker, index, paths, kind):
    calibrated = Reranker(reranker.network, reranker.settings, reranker.crop_size, fusion=OWN, device="cpu")
    update(index, paths, calibrated, maps=kind)
    (results,) = Index(index, device="cpu").search(calibrated.embed(paths[0]), 3, rerank=3)
    assert {result.probability is None for result in results} == {kind == "binary"}


def test_another_kind_is_refused(saved, reranker, index, paths, capsys):
    assert main(["index", str(paths[0]), "--to", str(index), "--model", str(saved), "--maps", "int8"]) == 0
    version = existing_table(index).version
    assert main(["index", *map(str, paths), "--to", str(index), "--maps", "binary"]) == 1
    assert capsys.readouterr().err.endswith(
        f"\n{index} keeps maps in int8, not in binary: leave the kind of maps out, or index into a new folder\n"
    )
    assert existing_table(index).version == version
    assert update(index, paths, reranker, maps="int8")[:2] == (7, 6)
    with pytest.raises(InputError, match=r"maps='int4' is unknown: choose from 'float16', 'int8', 'binary', or None"):
        update(index, paths, reranker, maps="int4")


def test_a_table_of_before_does_not_tell_its_kind(reranker, index, paths):
    update(index, paths, reranker)
    searched = Index(index, device="cpu").search(reranker.embed(paths[0]), 7, rerank=7)
    rows = existing_table(index).to_arrow()
    content = json.loads(rows.schema.metadata[KEY])
    assert content.pop("maps") == "float16"
    rows = rows.replace_schema_metadata({KEY: json.dumps(content)})
    table = engine().connect(str(index)).create_table(TABLE, rows, mode="overwrite")
    assert json.loads(table.schema.metadata[KEY]).keys() == {"format", "model", "map_shape"}
    assert Index(index, device="cpu").search(reranker.embed(paths[0]), 7, rerank=7) == searched
    assert update(index, paths, reranker, maps="float16")[:2] == (7, 0)


@pytest.mark.parametrize(
    ("number", "kinds", "problem"),
    [
        (-7e4, MAPS[:1], "numbers beyond 65,504, the range of float16: make a new index with --maps int8 or binary"),
        (np.inf, MAPS, "NaN or infinite numbers: leave it out"),
        (np.nan, MAPS, "NaN or infinite numbers: leave it out"),
    ],
)
def test_a_map_that_cannot_be_kept_is_named(reranker, index, paths, monkeypatch, number, kinds, problem):
    embed_pixels = Reranker.embed_pixels

    def embed(self, pixels):
        features = embed_pixels(self, pixels)
        features.maps[1, 3, 0, 0] = number
        return features

    monkeypatch.setattr(Reranker, "embed_pixels", embed)
    for kind in kinds:
        with pytest.raises(InputError) as raised:
            update(index, paths, reranker, maps=kind)
        assert str(raised.value) == f"the local map of {paths[1]} has {problem}"
    if kinds != MAPS:
        for kind in MAPS[1:]:
            assert update(f"{index}_{kind}", paths, reranker, maps=kind)[:2] == (7, 7)
