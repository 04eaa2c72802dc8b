import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from sop.images.transforms import Resizing, describe, square_transform, train_transform
from sop.images.transforms import test_transform as make_test_transform
from utils.errors import InputError


@pytest.fixture
def photo():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8))


def resized_and_cropped(photo: Image.Image, size: int, crop: int, resampling=Image.Resampling.BILINEAR) -> np.ndarray:
    """The whole photo resized by PIL to a square, then its middle, channels first."""
    resized = np.asarray(photo.convert("RGB").resize((size, size), resampling))
    offset = round((size - crop) / 2)
    return resized[offset : offset + crop, offset : offset + crop].transpose(2, 0, 1)


@pytest.mark.parametrize(("crop", "size"), [(224, 256), (112, 128), (96, 110), (64, 73)])
def test_ratio_of_resize_to_crop(photo, crop, size):
    pixels = make_test_transform(crop)(photo)
    assert pixels.dtype == torch.uint8
    np.testing.assert_array_equal(pixels.numpy(), resized_and_cropped(photo, size, crop))


@pytest.mark.parametrize(
    ("crop", "size", "interpolation"),
    [(224, 256, "bilinear"), (14, 16, "bilinear"), (14, 16, "bicubic"), (64, 64, "bicubic"), (61, 64, "bicubic")],
)
def test_test_transform_at_every_size(crop, size, interpolation):
    resampling = Image.Resampling[interpolation.upper()]
    transform = make_test_transform(crop, "exact", Resizing(interpolation, crop / size))
    rng = np.random.default_rng(1)
    sizes = [(1, 1), (1, 900), (900, 1), (size, size), (crop, crop), (size, 2 * size), (640, 480), (480, 640)]
    # Pillow changes the order of its passes near a height of twice the width
    sizes += [(width, 2 * width - size + more) for width in (size + 44, 412) for more in range(-1, 36)]
    sizes += rng.integers(1, 1300, (60, 2)).tolist()
    for width, height in sizes:
        photo = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        expected = resized_and_cropped(photo, size, crop, resampling)
        np.testing.assert_array_equal(transform(photo).numpy(), expected, f"{width} x {height}")


@pytest.mark.parametrize("size", [(300, 200), (200, 301), (64, 64)])
def test_a_photo_that_keeps_its_aspect_is_the_square_in_its_centre(size):
    width, height = size
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))
    transform = make_test_transform(56, resizing=Resizing("bicubic", 0.875, keeps_aspect=True))
    side = min(size)
    left, upper = (width - side) // 2, (height - side) // 2
    square = photo.crop((left, upper, left + side, upper + side)).resize((64, 64), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(transform(photo).numpy(), np.asarray(square)[4:60, 4:60].transpose(2, 0, 1))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_train_transform_is_random_resized_crop_and_flip(photo, interpolation):
    crop = transforms.RandomResizedCrop(32, interpolation=transforms.InterpolationMode(interpolation))
    plain = transforms.Compose([crop, transforms.RandomHorizontalFlip(), transforms.PILToTensor()])
    for seed in range(50):
        torch.manual_seed(seed)
        expected = plain(photo)
        torch.manual_seed(seed)
        assert torch.equal(train_transform(32, resizing=Resizing(interpolation))(photo), expected)


def test_a_description_tells_transforms_apart():
    assert describe(make_test_transform(224)) == "('_centre_crop', ['exact', 224])"
    resizings = [Resizing("bicubic"), Resizing("bilinear", 1.0), Resizing(keeps_aspect=True)]
    settings = [(), ("fast",), *(("exact", resizing) for resizing in resizings)]
    for make in (make_test_transform, square_transform):
        assert len({describe(make(224, *options)) for options in settings}) == 5
    assert len({describe(train_transform(224, *options)) for options in settings[:3]}) == 3


@pytest.mark.parametrize("make", [train_transform, make_test_transform, square_transform])
def test_unknown_interpolation(make):
    with pytest.raises(InputError, match="interpolation='lanczos' is unknown: choose from 'bilinear', 'bicubic'"):
        make(224, resizing=Resizing("lanczos"))
