"""Descriptors kept on disk: taken from there while they fit, made anew otherwise."""

import os
import shutil

import pytest
import torch
from torch.utils.data import DataLoader

from models.matcher import Matcher
from models.resnet import RerankingResNet
from sop.dataset import ImageSet
from sop.splits import class_map, read_split
from sop.transforms import test_transform as transform_of
from utils.training import evaluate_global, evaluate_rerank

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
    matcher = Matcher(16, 4, 2, 32)
    return RerankingResNet(
        5, matcher, arch="resnet18", num_global_features=16, num_local_features=16, **settings
    ).eval()


def test_one_pass_serves_both_evaluations(folder, tmp_path, capsys):
    model, loader = network(), loader_of(folder)
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
            assert (ours[1] == expected[1]).all() and (ours[2] == expected[2]).all()
    (file,) = kept.iterdir()
    assert [len(features) for features in torch.load(file, weights_only=True)["features"]] == [20, 20]


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
    (file,) = kept.iterdir()
    file.write_bytes(file.read_bytes()[:-100])
    changed("'network', 'photos', 'transform', 'precision'", folder, kept, capsys)
    for other in ([1, 2], torch.ones(3), None):
        torch.save(other, file)
        changed("'network', 'photos', 'transform', 'precision'", folder, kept, capsys)
    whole = torch.load(file, weights_only=True)
    descriptors, maps = whole.pop("features")
    for damaged in (None, 5, [descriptors], [descriptors[:-1], maps], [maps, descriptors], [descriptors.int(), maps]):
        torch.save(whole | ({} if damaged is None else {"features": damaged}), file)
        changed("'features'", folder, kept, capsys)


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
