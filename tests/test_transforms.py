import numpy as np
import pytest
import torch
from PIL import Image

from sop.transforms import test_transform as make_test_transform
from sop.transforms import train_transform


@pytest.fixture
def photo():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8))


@pytest.mark.parametrize(("crop", "size"), [(224, 256), (112, 128), (96, 110), (64, 73)])
def test_the_test_side_keeps_the_ratio_of_resize_to_crop(photo, crop, size):
    resized = np.asarray(photo.resize((size, size), Image.Resampling.BILINEAR))
    offset = round((size - crop) / 2)
    expected = resized[offset : offset + crop, offset : offset + crop].transpose(2, 0, 1)
    pixels = make_test_transform(crop)(photo)
    assert pixels.dtype == torch.uint8
    np.testing.assert_array_equal(pixels.numpy(), expected)


def test_the_train_side_draws_boxes_and_flips(photo):
    left = Image.fromarray(np.tile(np.linspace(0, 255, 130, dtype=np.uint8)[None, :, None], (90, 1, 3)))
    slopes, contrasts = [], []
    for seed in range(300):
        torch.manual_seed(seed)
        pixels = train_transform(32)(left).float()
        assert pixels.shape == (3, 32, 32)
        slopes.append(float(pixels[0, 0, -1] - pixels[0, 0, 0]) > 0)
        contrasts.append(abs(float(pixels[0, 0, -1] - pixels[0, 0, 0])) / 255)
    assert 0.4 < np.mean(slopes) < 0.6  # flipped half the time
    assert min(contrasts) < 0.45 < 0.8 < max(contrasts)  # boxes of many widths
