import shutil

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from sop.dataset import Draw, ImageSet, SkippingImageSet
from sop.images.transforms import train_transform
from sop.samplers import RandomSampler
from sop.splits import class_map, read_split
from utils.errors import InputError


def image_set(photos, transform=None):
    split = read_split(photos, "train.txt")
    return ImageSet(photos, split, class_map(split), transform or train_transform(32))


def test_an_item(photos):
    pixels, label, index = image_set(photos)[5]
    assert (pixels.shape, pixels.dtype, label, index) == ((3, 32, 32), torch.uint8, 1, 5)


def test_draws_depend_on_their_key_alone(photos):
    images = image_set(photos)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first, _, index = images[Draw(4, (0, 2, 9))]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(first, images[Draw(4, (0, 2, 9))][0])
    assert not torch.equal(first, images[Draw(4, (0, 2, 10))][0])
    assert index == 4


def test_pixels_do_not_depend_on_workers(photos):
    images = image_set(photos)
    epochs = []
    for workers in (0, 2):
        sampler = RandomSampler(len(images), 8, seed=3)
        batches = list(DataLoader(images, batch_sampler=sampler, num_workers=workers))
        epochs.append(torch.cat([pixels for pixels, _, _ in batches]))
    assert torch.equal(*epochs)


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_photos_are_replaced_within_their_class(photos, tmp_path, workers):
    shutil.copytree(photos, tmp_path / "sop")
    good, split = image_set(photos), read_split(photos, "train.txt")
    (tmp_path / "sop" / split.paths[5]).unlink()  # of class 1: images 4 to 7
    (tmp_path / "sop" / split.paths[6]).write_bytes(b"no photo")
    images = SkippingImageSet(tmp_path / "sop", split, class_map(split), train_transform(32))
    taken = set()
    for epoch in range(20):
        batches = (RandomSampler(24, 8, seed=1), RandomSampler(24, 8, seed=1))
        for batch in batches:
            batch.set_epoch(epoch)
        draws = [draw for batch in batches[0] for draw in batch]
        found = DataLoader(images, batch_sampler=batches[1], num_workers=workers)
        items = [item for batch in found for item in zip(*batch, strict=True)]
        for draw, (pixels, label, image) in zip(draws, items, strict=True):
            assert label == good.labels[draw.image]
            if draw.image not in (5, 6):
                assert image == draw.image
            else:
                taken.add(int(image))
            assert torch.equal(pixels, good[Draw(int(image), draw.key)][0])
    assert taken == {4, 7}
    assert images.unreadable() == [split.paths[5], split.paths[6]]


def test_a_class_without_a_readable_photo(photos, tmp_path):
    split = read_split(photos, "train.txt")
    images = SkippingImageSet(tmp_path, split, class_map(split), train_transform(32))
    with pytest.raises(InputError, match=r"0_2\.JPG does not exist: .*; no other photo of its class can be read"):
        images[Draw(2, (0, 0, 0))]
    assert images.unreadable() == list(split.paths[:4])
    assert np.array_equal(images.labels, image_set(photos).labels)
