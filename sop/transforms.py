"""From a decoded photo to the uint8 pixels that a loader yields."""

from torchvision import transforms
from torchvision.transforms import InterpolationMode

RESIZE_TO_CROP = 256 / 224  # the test side's ratio of resize to crop


def train_transform(crop_size: int) -> transforms.Compose:
    """RGB image -> uint8 (3, crop_size, crop_size): random resized crop (bilinear), then a flip with p = 0.5."""
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(crop_size, interpolation=InterpolationMode.BILINEAR),
            transforms.RandomHorizontalFlip(),
            transforms.PILToTensor(),
        ]
    )


def test_transform(crop_size: int) -> transforms.Compose:
    """RGB image -> uint8 (3, crop_size, crop_size): resize to a square, 256 for a crop of 224, then centre crop."""
    size = round(crop_size * RESIZE_TO_CROP)
    return transforms.Compose(
        [
            transforms.Resize((size, size), interpolation=InterpolationMode.BILINEAR),
            transforms.CenterCrop(crop_size),
            transforms.PILToTensor(),
        ]
    )
