"""Photos of every kind and their pixels, in each decode mode."""

import io
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from sop.photo import opened, to_rgb
from tests.sop.test_decoding import smooth
from utils.errors import InputError

PHOTO = smooth(90, 60)
GREYS = np.asarray(PHOTO.convert("L"))
GREYS_16 = (GREYS.astype(np.int64) * 257 + np.random.default_rng(0).integers(-128, 129, GREYS.shape)).clip(0, 65535)


def saved(photo: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    photo.save(file, kind, **options)
    return file.getvalue()


def sixteen(kind: str, **options) -> bytes:
    return saved(Image.fromarray(GREYS_16.astype(np.uint16)), kind, **options)


BIG_ENDIAN = Image.frombytes("I;16B", PHOTO.size, GREYS_16.astype(">u2").tobytes())


@pytest.mark.parametrize(
    "content",
    [
        sixteen("PNG"),
        sixteen("TIFF"),
        sixteen("TIFF", compression="tiff_deflate"),
        saved(BIG_ENDIAN, "TIFF"),
        sixteen("JPEG2000"),
    ],
    ids=["png", "tiff", "deflated", "big-endian", "jpeg2000"],
)
def test_greys_of_16_bits_are_scaled_to_8(tmp_path, load, content):
    (tmp_path / "16").write_bytes(content)
    (tmp_path / "8").write_bytes(saved(Image.fromarray(GREYS), "PNG"))
    with Image.open(tmp_path / "16") as photo:
        assert photo.mode.startswith("I;16")
        photo.load()
        assert np.array_equal(np.asarray(photo), GREYS_16)
    assert torch.equal(load("16"), load("8"))


def test_every_grey_of_16_bits():
    every = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    for mode, order in (("I;16", "<u2"), ("I;16B", ">u2")):
        photo = Image.frombytes(mode, (256, 256), every.astype(order).tobytes())
        expected = np.rint(every / 257).astype(np.uint8)
        assert np.array_equal(np.asarray(to_rgb(photo)), expected[:, :, None].repeat(3, 2)), mode


@pytest.mark.parametrize(
    "content",
    [
        saved(Image.fromarray(GREYS.astype(np.int32)), "TIFF"),
        saved(Image.fromarray(GREYS.astype(np.float32)), "TIFF"),
        saved(Image.fromarray(GREYS_16.astype(np.int32)), "PPM"),
        sixteen("TIFF").replace(struct.pack("<HHII", 262, 3, 1, 1), struct.pack("<HHII", 262, 3, 1, 0)),
    ],
    ids=["whole-numbers", "floats", "pgm", "white-is-0"],
)
def test_greys_whose_white_is_not_known_are_refused(tmp_path, load, content):
    (tmp_path / "grey").write_bytes(content)
    with pytest.raises(InputError, match=r"photo .*/grey has greys that are not of 8 or 16 bits: save it with 8 bits$"):
        load("grey")


PALETTE, CLEAR = PHOTO.convert("P"), PHOTO.convert("RGBA")
CLEAR.putalpha(100)


@pytest.mark.parametrize(
    ("content", "mode"),
    [
        (saved(PHOTO.convert("CMYK"), "JPEG"), "CMYK"),
        (saved(PALETTE, "PNG", transparency=3), "P"),
        (saved(PALETTE, "PNG", transparency=bytes(range(256))), "P"),
        (saved(PALETTE, "GIF", transparency=3), "P"),
        (saved(PHOTO.convert("L"), "PNG", transparency=3), "L"),
        (saved(PHOTO.convert("LA"), "PNG"), "LA"),
        (saved(CLEAR, "PNG"), "RGBA"),
        (saved(CLEAR, "WEBP", lossless=True), "RGBA"),
        (saved(PHOTO.convert("1"), "BMP"), "1"),
        (saved(PHOTO.convert("YCbCr"), "TIFF"), "YCbCr"),
    ],
    ids=["cmyk", "palette", "palette-alpha", "gif", "grey-alpha", "la", "rgba", "webp", "1", "ycbcr"],
)
@pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning")  # of the test's own conversion
def test_every_mode_has_the_colours_that_pil_gives_it(tmp_path, load, content, mode):
    (tmp_path / "photo").write_bytes(content)
    with Image.open(tmp_path / "photo") as photo:
        assert photo.mode == mode
        (tmp_path / "rgb").write_bytes(saved(photo.convert("RGB"), "PNG"))
    assert torch.equal(load("photo"), load("rgb"))


def test_no_warning_of_transparency(tmp_path, recwarn):
    (tmp_path / "photo").write_bytes(saved(PALETTE, "PNG", transparency=bytes(range(256))))
    with opened(tmp_path / "photo") as photo:
        to_rgb(photo)
    assert not recwarn.list


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_photo_is_not_turned_by_its_exif(tmp_path, load, kind):
    exif = Image.Exif()
    exif[0x0112] = 6  # by a right angle
    (tmp_path / "plain").write_bytes(saved(PHOTO, kind))
    (tmp_path / "turned").write_bytes(saved(PHOTO, kind, exif=exif))
    assert torch.equal(load("turned"), load("plain"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP"])
@pytest.mark.parametrize("size", [(1, 1), (1, 30000), (30000, 1), (3, 2)])
def test_absurd_sizes(tmp_path, load, kind, size):
    (tmp_path / "photo").write_bytes(saved(Image.new("RGB", size, (90, 90, 90)), kind))
    assert load("photo").unique().tolist() == [90]
