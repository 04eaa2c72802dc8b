"""Photos of one's own, and photos loaded in each decode mode."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sop.dataset import Draw, ImageSet
from sop.images.transforms import test_transform as make_test_transform
from sop.images.transforms import train_transform
from sop.splits import Split

DECODERS = ["exact", "fast"]


@pytest.fixture(params=DECODERS)
def load(request, tmp_path) -> Callable[[str], torch.Tensor]:
    """The pixels, uint8 (2, 3, 56, 56), of a photo as in testing and in training, in each decode mode."""

    def load(name: str) -> torch.Tensor:
        items = []
        for transform in (make_test_transform(56, request.param), train_transform(56, request.param)):
            images = ImageSet(tmp_path, Split([name], [0]), {0: 0}, transform)
            items.append(images[Draw(0, (0, 0, 0))][0])
        pixels = torch.stack(items)
        assert (pixels.shape, pixels.dtype) == ((2, 3, 56, 56), torch.uint8)
        return pixels

    return load


@pytest.fixture
def folder(photos, tmp_path) -> Path:
    """A copy of the photos, to be changed."""
    return shutil.copytree(photos, tmp_path / "photos")
