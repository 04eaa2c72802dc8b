import torch
from torch.utils.data import DataLoader

from sop.dataset import Draw, ImageSet
from sop.samplers import RandomSampler
from sop.splits import class_map, read_split
from sop.transforms import train_transform


def image_set(photos, transform=None):
    split = read_split(photos, "train.txt")
    return ImageSet(photos, split, class_map(split), transform or train_transform(32))


def test_an_item(photos):
    pixels, label, index = image_set(photos)[5]
    assert (pixels.shape, pixels.dtype, label, index) == ((3, 32, 32), torch.uint8, 1, 5)


def test_a_draw_follows_from_its_key_alone(photos):
    images = image_set(photos)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first, _, index = images[Draw(4, (0, 2, 9))]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(first, images[Draw(4, (0, 2, 9))][0])
    assert not torch.equal(first, images[Draw(4, (0, 2, 10))][0])
    assert index == 4


def test_the_same_pixels_with_any_number_of_workers(photos):
    images = image_set(photos)
    epochs = []
    for workers in (0, 2):
        sampler = RandomSampler(len(images), 8, seed=3)
        batches = list(DataLoader(images, batch_sampler=sampler, num_workers=workers))
        epochs.append(torch.cat([pixels for pixels, _, _ in batches]))
    assert torch.equal(*epochs)
