"""Descriptors kept on disk: taken from there while they fit, made anew otherwise."""

import os
import re
import shutil

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from models.network import RerankingNetwork
from models.settings import NetworkSettings
from sop.dataset import ImageSet
from sop.images.image_cache import CachedImageSet, CachedLoader
from sop.images.transforms import test_transform as transform_of
from sop.splits import class_map, read_split
from tests.conftest import TINY
from tests.faults import exchanged, names
from tests.narrow import narrow
from utils.errors import InputError
from utils.evaluation import evaluate_global, evaluate_rerank
from utils.retrieval.embedding import GLOBAL, LOCAL, embed
from utils.store import feature_cache

NEIGHBOURS = torch.tensor([[j for j in range(20) if j != i] for i in range(20)])


@pytest.fixture
def folder(photos, tmp_path):
    """A copy of the photos that a test may change."""
    shutil.copytree(photos, tmp_path / "photos")
    return tmp_path / "photos"


def loader_of(folder, crop_size=32):
    split = read_split(folder, "test.txt")
    return DataLoader(ImageSet(folder, split, class_map(split), transform_of(crop_size)), batch_size=8)


def network(seed=0, **settings):
    torch.manual_seed(seed)
    with narrow():
        return RerankingNetwork(5, NetworkSettings(**TINY["model"] | settings)).eval()


def test_one_pass_serves_both_evaluations(folder, tmp_path, capsys, device):
    model, loader = network().to(device), loader_of(folder)
    plain = evaluate_global(model, loader, None, [1, 10]), evaluate_rerank(model, NEIGHBOURS, loader, None, [1, 10])
    kept = tmp_path / "features"
    for time in range(2):
        capsys.readouterr()
        found = (
            evaluate_global(model, loader, None, [1, 10], features=kept),
            evaluate_rerank(model, NEIGHBOURS, loader, None, [1, 10], features=kept),
        )
        printed = capsys.readouterr()
        assert ("Extracting" in printed.err) == (time == 0)
        assert printed.out.count("descriptors of 20 images are taken from") == 1 + time
        for ours, expected in zip(found, plain, strict=True):
            assert ours[0] == expected[0]
            np.testing.assert_allclose(ours[1], expected[1], rtol=0, atol=0 if device.type == "cpu" else 1e-5)
            assert (ours[2] == expected[2]).all()
    (store,) = kept.iterdir()
    assert names(store) == ["descriptors.npy", "maps.npy", "store.json"]
    assert np.load(store / "maps.npy", mmap_mode="r").shape == (20, 16, 1, 1)


def changed(reason, folder, kept, capsys, model=None, loader=None, dtype=torch.float32):
    """Evaluate with something changed: the descriptors must be those of an evaluation without kept ones."""
    capsys.readouterr()
    model, loader = model or network(), loader or loader_of(folder)
    ours = evaluate_global(model, loader, None, [1], dtype, features=kept)
    assert f"does not fit, by its {reason}: the images are embedded again" in capsys.readouterr().out
    assert (ours[1] == evaluate_global(model, loader, None, [1], dtype)[1]).all()


def test_what_does_not_fit_is_made_anew(folder, tmp_path, capsys):
    kept = tmp_path / "features"
    evaluate_global(network(), loader_of(folder), None, [1], features=kept)
    changed("'network'", folder, kept, capsys, model=network(seed=1))
    changed("'network'", folder, kept, capsys, model=network(normalize=True))
    changed("'network'", folder, kept, capsys)
    changed("'transform'", folder, kept, capsys, loader=loader_of(folder, crop_size=64))
    changed("'transform', 'precision'", folder, kept, capsys, dtype=torch.bfloat16)
    changed("'precision'", folder, kept, capsys)
    photo = folder / read_split(folder, "test.txt").paths[3]
    os.utime(photo, ns=(0, 0))
    changed("'photos'", folder, kept, capsys)
    first, second = (folder / read_split(folder, "test.txt").paths[i] for i in (3, 9))
    with exchanged(first, second):
        changed("'photos'", folder, kept, capsys)
    changed("'photos'", folder, kept, capsys)
    (store,) = kept.iterdir()
    (store / "store.json").write_text("[]")
    changed("'network', 'photos', 'transform', 'precision'", folder, kept, capsys)


class Small(torch.nn.Module):
    """A network that answers two of its pixels' means, and maps of one pixel in four; it notes what it is given."""

    def __init__(self):
        super().__init__()
        self.weight, self.embedded = torch.nn.Parameter(torch.ones(1)), []

    def fingerprint(self):
        return [self.weight.detach().numpy().tobytes()]

    def embedder(self, dtype):
        def answers(images):
            self.embedded.append(len(images))
            values = images.float() * self.weight
            return values.mean(dim=(2, 3)), values[:, :, ::2, ::2].to(dtype)

        return answers


def embedded(loader, kept, dtype=torch.float32, network=None):
    (descriptors, maps), labels = embed(network or Small(), loader, [GLOBAL, LOCAL], "query", dtype, kept)
    return descriptors, maps if isinstance(maps, torch.Tensor) else maps[:], labels


def all_equal(ours, expected):
    return all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(ours, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_kept_ones_are_the_embedded_ones(folder, tmp_path, dtype):
    loader = loader_of(folder)
    expected = embedded(loader, None, dtype)
    for _ in range(2):
        assert all_equal(embedded(loader, tmp_path / "features", dtype), expected)


def cached_loader(folder, cache):
    split = read_split(folder, "test.txt")
    images = CachedImageSet(folder, split, class_map(split), 32, "exact", cache)
    return CachedLoader(images, batch_size=8)


@pytest.mark.parametrize("is_cached", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_an_embedding_that_was_interrupted_goes_on(folder, tmp_path, capsys, monkeypatch, is_cached, workers):
    monkeypatch.setattr("utils.store.store.ROWS_AT_ONCE", 8)
    if is_cached:
        loader = cached_loader(folder, tmp_path / "cache")
    else:
        loader = DataLoader(loader_of(folder).dataset, batch_size=8, num_workers=workers)
    expected, kept = embedded(loader, None), tmp_path / "features"

    class Failing(Small):
        """Fails with the third batch."""

        def embedder(self, dtype):
            answers = super().embedder(dtype)

            def failing(images):
                if len(self.embedded) == 2:
                    raise KeyboardInterrupt
                return answers(images)

            return failing

    with pytest.raises(KeyboardInterrupt):
        embedded(loader, kept, network=Failing())
    network = Small()
    capsys.readouterr()
    assert all_equal(embedded(loader, kept, network=network), expected)
    assert network.embedded == [4]
    printed = capsys.readouterr()
    assert "has the first 16 of 20 images: embedding goes on from there\n" in printed.out
    assert "80%" in printed.err


def test_an_unreadable_photo_costs_its_chunk(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("utils.store.store.ROWS_AT_ONCE", 8)
    loader, kept = loader_of(folder), tmp_path / "features"
    expected, get = embedded(loader, None), ImageSet.__getitem__

    def unreadable(images, index):
        if index == 12:
            raise InputError("the disk does not answer")
        return get(images, index)

    with monkeypatch.context() as patch, pytest.raises(InputError, match="the disk does not answer"):
        patch.setattr(ImageSet, "__getitem__", unreadable)
        embedded(loader, kept)
    assert all_equal(embedded(loader, kept), expected)
    assert "has the first 8 of 20 images" in capsys.readouterr().out


def test_what_is_damaged_is_embedded_again(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("utils.store.store.ROWS_AT_ONCE", 8)
    loader, kept = loader_of(folder), tmp_path / "features"
    expected = embedded(loader, kept)
    (store,) = kept.iterdir()
    os.truncate(store / "maps.npy", (store / "maps.npy").stat().st_size - 1)
    assert torch.equal(embed(Small(), loader, [GLOBAL], "query", torch.float32, kept)[0][0], expected[0])
    assert "is damaged" not in capsys.readouterr().out  # the descriptors are not
    network = Small()
    assert all_equal(embedded(loader, kept, network=network), expected)
    assert network.embedded == [8, 8, 4]
    assert "is damaged: the images are embedded again" in capsys.readouterr().out


def test_nonfinite_features_are_not_cached(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("utils.store.store.ROWS_AT_ONCE", 8)
    loader, network = loader_of(folder), Small()
    network.weight.data[0] = float("inf")
    with pytest.raises(InputError, match=f"NaN or infinite numbers for photo {loader.dataset.paths[0]}"):
        embedded(loader, tmp_path / "features", network=network)
    assert names(tmp_path / "features") == []


def test_of_two_at_once_one_keeps_them(folder, tmp_path, capsys):
    loader, kept = loader_of(folder), tmp_path / "features"
    expected = embedded(loader, None)

    class Meeting(Small):
        """While it embeds, another evaluation comes."""

        def embedder(self, dtype):
            assert all_equal(embedded(loader, kept), expected)
            return super().embedder(dtype)

    assert all_equal(embedded(loader, kept, network=Meeting()), expected)
    printed = capsys.readouterr().out
    assert re.search(
        r"descriptors are not kept: .*features_\w+ is being written by process \d+ on .*: the images are embedded with",
        printed,
    )
    assert all_equal(embedded(loader, kept), expected)
    assert "are taken from" in capsys.readouterr().out


def test_one_that_waited_takes_what_the_other_has_written(folder, tmp_path, capsys, monkeypatch):
    loader, kept = loader_of(folder), tmp_path / "features"
    lock = feature_cache.exclusive_lock

    def after_the_other(*given):
        monkeypatch.setattr(feature_cache, "exclusive_lock", lock)
        embedded(loader, kept)
        return lock(*given)

    monkeypatch.setattr(feature_cache, "exclusive_lock", after_the_other)
    network = Small()
    assert all_equal(embedded(loader, kept, network=network), embedded(loader, None))
    assert network.embedded == []


def test_the_matcher_and_other_lists_do_not_matter(folder, tmp_path, capsys):
    kept, model = tmp_path / "features", network()
    evaluate_global(model, loader_of(folder), None, [1], features=kept)
    torch.nn.init.zeros_(model.matcher.classifier.weight)
    evaluate_global(model, loader_of(folder), None, [1], features=kept)
    lines = (folder / "test.txt").read_text().splitlines()
    (folder / "test.txt").write_text("\n".join(lines[:12]))
    evaluate_global(model, loader_of(folder), None, [1], features=kept)
    printed = capsys.readouterr().out
    assert "descriptors of 20 images are taken from" in printed
    assert "again" not in printed
    assert len(list(kept.iterdir())) == 2


def test_an_evaluation_goes_on_where_nothing_can_be_kept(folder, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    recalls = evaluate_global(network(), loader_of(folder), None, [1], features=tmp_path / "file")[0]
    assert recalls == evaluate_global(network(), loader_of(folder), None, [1])[0]
    assert "descriptors are not kept" in capsys.readouterr().out
