"""Views of training images that a frozen backbone embeds once."""

import numpy as np
import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import MultiStepLR
from torch.utils.data import DataLoader

from sop.dataset import Draw, ImageSet
from sop.images.transforms import train_transform
from sop.samplers import RandomSampler, TripletSampler
from sop.splits import class_map, read_split
from sop.views import EmbeddedViews
from tests.conftest import CUDA
from tests.reference import published_model
from tests.utils.training.test_loop import Log
from utils import BinaryCrossEntropyWithLogits
from utils.errors import InputError
from utils.retrieval.embedding import embed_views
from utils.training.loop import train_rerank


@pytest.fixture
def images(photos):
    split = read_split(photos, "train.txt")
    return ImageSet(photos, split, class_map(split), train_transform(64))


def pixels_of(loader):
    return torch.cat([images for images, _, _ in loader]).float()


def triplets(images, seed=3):
    neighbours = np.array([[j for j in range(24) if j != i] for i in range(24)])
    return DataLoader(images, batch_sampler=TripletSampler(images.labels, neighbours, 15, seed))


def test_each_draw_uses_a_crop_of_its_image(images):
    loader = DataLoader(images, batch_sampler=RandomSampler(24, 10, seed=3))
    views = EmbeddedViews(loader, 4, pixels_of)
    expected = [[images[Draw(i, (3, view, i))][0].float() for view in range(4)] for i in range(24)]
    draws = []
    for epoch in range(12):
        views.batch_sampler.set_epoch(epoch)
        assert len(views) == 2
        for batch, (maps, labels, positions) in zip(views.batch_sampler, views, strict=True):
            assert [draw.image for draw in batch] == positions.tolist()
            assert np.array_equal(labels, images.labels[positions])
            for found, image in zip(maps, positions.tolist(), strict=True):
                (view,) = [number for number, pixels in enumerate(expected[image]) if torch.equal(pixels, found)]
                draws.append((epoch, image, view))
    counts = np.bincount([view for _, _, view in draws], minlength=4)
    assert (abs(counts - 60) < 4 * np.sqrt(45)).all()  # 240 draws from 4 views
    for (maps, *_), (again, *_) in zip(views, EmbeddedViews(loader, 4, pixels_of), strict=True):
        assert torch.equal(maps, again)


def train(model, loader, embedded):
    log = Log()
    optimizer = SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    scheduler = MultiStepLR(optimizer, [9])
    train_rerank(model, loader, BinaryCrossEntropyWithLogits(), optimizer, scheduler, 0, log, embedded=embedded)
    return log.values("train.loss")


def test_training_on_features_equals_training_on_crops(images):
    loader, model = triplets(images), published_model(6, arch="resnet18", freeze_backbone=True)
    found = train(model, EmbeddedViews(loader, 2, lambda views: embed_views(model, views, torch.float32)), True)
    pictures = list(EmbeddedViews(loader, 2, lambda views: pixels_of(views) / 255))
    expected = train(published_model(6, arch="resnet18", freeze_backbone=True), pictures, False)
    assert len(found) == 5
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("device", [CUDA])
@pytest.mark.parametrize("free", [1 << 30, 0])
def test_features_on_gpu_or_pinned_equal_cpu(images, device, free, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 1 << 30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", torch.cuda.memory_allocated)
    found = EmbeddedViews(triplets(images), 2, pixels_of, device)
    for (maps, *rest), (expected, *others) in zip(found, EmbeddedViews(triplets(images), 2, pixels_of), strict=True):
        assert (maps.is_cuda, maps.is_pinned()) == (free > 0, free == 0)
        assert torch.equal(maps.cpu(), expected)
        assert all(map(torch.equal, rest, others))


def test_fewer_than_one_view(images):
    with pytest.raises(InputError, match="frozen_views=0: give 1 or more"):
        EmbeddedViews(triplets(images), 0, pixels_of)


def test_features_exceed_memory(images, monkeypatch):
    monkeypatch.setattr("utils.runtime.memory.memory_limit", lambda: 250_000)
    model = published_model(6, arch="resnet18", freeze_backbone=True)
    with pytest.raises(InputError, match=r"48 images take 0\.000393 GB, but .* 0\.00025 GB of memory.* frozen_views"):
        EmbeddedViews(triplets(images), 2, lambda views: embed_views(model, views, torch.float32))
