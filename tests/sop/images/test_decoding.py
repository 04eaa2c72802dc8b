"""Fast decoding beside PIL's pixels."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode

from sop.images.decoding import View, fast
from sop.images.transforms import Resizing, train_transform
from sop.images.transforms import test_transform as make_test_transform


def smooth(width: int, height: int) -> Image.Image:
    coarse = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def stored(photo: Image.Image, **options) -> Image.Image:
    file = io.BytesIO()
    photo.save(file, "JPEG", **options)
    return Image.open(file)


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    assert a.dtype == b.dtype == torch.uint8
    return float((a.float() - b.float()).abs().mean())


@pytest.mark.parametrize("resizing", [Resizing(), Resizing("bicubic", 1.0, keeps_aspect=True)])
@pytest.mark.parametrize("size", [(640, 480), (481, 643), (230, 1100), (1601, 1200), (100, 60), (1, 1)])
def test_fast_pixels_are_close_to_exact(size, resizing):
    photo = smooth(*size)
    pixels = [make_test_transform(224, decode, resizing)(stored(photo)) for decode in ("exact", "fast")]
    assert distance(*pixels) < 1.5
    for seed in range(10):
        pixels = []
        for decode in ("exact", "fast"):
            torch.manual_seed(seed)
            pixels.append(train_transform(224, decode, resizing)(stored(photo)))
        assert distance(*pixels) < 3, seed


@pytest.mark.parametrize(
    "size", [(640, 480), (400, 300), (447, 900), (701, 750), (901, 897), (2400, 1800), (1792, 1800)]
)
@pytest.mark.parametrize("mode", [InterpolationMode.BILINEAR, InterpolationMode.BICUBIC])
def test_reduction_equals_pil(size, mode):
    photo, draft = stored(smooth(*size)), stored(smooth(*size))
    draft.draft("RGB", (224, 224))
    expected = torch.from_numpy(np.array(draft)).permute(2, 0, 1)[None]
    expected = torch.nn.functional.interpolate(expected, (256, 256), mode=mode.value, antialias=True)[0]
    assert distance(fast(photo, View((0, 0, *size), 256, 224, interpolation=mode)), expected) == 0


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_other_colour_modes(mode):
    photo = stored(smooth(640, 480).convert(mode))
    assert distance(make_test_transform(224, "fast")(photo), make_test_transform(224)(photo)) < 1.5


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_other_formats_than_jpeg(mode):
    photo = smooth(300, 200).convert(mode)
    assert distance(make_test_transform(112, "fast")(photo), make_test_transform(112)(photo)) < 1.5
