"""Photos of every kind and their pixels, in each decode mode."""

import io
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from sop.images.photo import opened, to_rgb
from tests.sop.images.test_decoding import smooth
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
def test_16_bit_greys_are_scaled_to_8(tmp_path, load, content):
    (tmp_path / "16").write_bytes(content)
    (tmp_path / "8").write_bytes(saved(Image.fromarray(GREYS), "PNG"))
    with Image.open(tmp_path / "16") as photo:
        assert photo.mode.startswith("I;16")
        photo.load()
        assert np.array_equal(np.asarray(photo), GREYS_16)
    assert torch.equal(load("16"), load("8"))


def test_every_16_bit_grey():
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
def test_greys_with_unknown_white_are_refused(tmp_path, load, content):
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
def test_modes_equal_pil_on_white(tmp_path, load, content, mode):
    (tmp_path / "photo").write_bytes(content)
    with Image.open(tmp_path / "photo") as photo:
        assert photo.mode == mode
        if photo.has_transparency_data:
            *colours, alpha = np.moveaxis(np.asarray(photo.convert("RGBA"), np.float64), 2, 0)
            shown = np.rint([(colour * alpha + 255 * (255 - alpha)) / 255 for colour in colours]).astype(np.uint8)
            expected = Image.fromarray(np.moveaxis(shown, 0, 2))
        else:
            expected = photo.convert("RGB")
        (tmp_path / "rgb").write_bytes(saved(expected, "PNG"))
    assert (load("photo").int() - load("rgb").int()).abs().max() <= 1


@pytest.mark.parametrize("hidden", ["white", "black", (71, 112, 76), "noise"])
def test_pixels_hidden_by_transparency_do_not_matter(tmp_path, load, hidden):
    """A product on a transparent ground, which viewers show white: a disc with a soft edge."""
    down, across = np.mgrid[:60, :90]
    alpha = (255 * (25 - np.hypot(down - 30, across - 45))).clip(0, 255).astype(np.uint8)
    if hidden == "noise":
        ground = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    else:
        ground = np.asarray(Image.new("RGB", PHOTO.size, hidden))
    colours = np.where(alpha[:, :, None] > 0, np.asarray(PHOTO), ground)
    cut_out = Image.fromarray(np.dstack((colours, alpha)))
    cut_out.save(tmp_path / "cut_out", "PNG")
    white = Image.new("RGB", PHOTO.size, "white")
    white.paste(PHOTO, mask=Image.fromarray(alpha))
    white.save(tmp_path / "white", "PNG")
    assert (load("cut_out").int() - load("white").int()).abs().max() <= 1


def test_transparent_16_bit_grey_is_white(tmp_path, load):
    (tmp_path / "16").write_bytes(sixteen("PNG", transparency=int(GREYS_16[0, 0])))
    shown = np.where(GREYS_16[0, 0] == GREYS_16, 255, GREYS)
    (tmp_path / "8").write_bytes(saved(Image.fromarray(shown.astype(np.uint8)), "PNG"))
    assert torch.equal(load("16"), load("8"))


def test_eps_starts_no_program(tmp_path, monkeypatch):
    """Pillow would have Ghostscript draw EPS, and knows it by its content."""
    saved_as = saved(PHOTO, "EPS")
    (tmp_path / "photo.jpg").write_bytes(saved_as)
    started = []
    monkeypatch.setattr("subprocess.Popen.__init__", lambda *arguments, **_: started.append(arguments))
    refused = pytest.raises(InputError, match=r"photo .*photo\.jpg cannot be read \(cannot identify image file")
    with refused, opened(tmp_path / "photo.jpg") as photo:
        to_rgb(photo)
    assert not started


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_applies_exif_orientation(tmp_path, kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    (tmp_path / "photo").write_bytes(saved(PHOTO, kind, exif=exif))
    (tmp_path / "plain").write_bytes(saved(PHOTO, kind))
    with opened(tmp_path / "photo") as photo, Image.open(tmp_path / "plain") as plain:
        pixels = np.asarray(
            plain.convert("RGB")
        )  # rows of the file; EXIF 2.32, 4.6.4: where its row 0 and column 0 are
        pixels = pixels.swapaxes(0, 1) if orientation >= 5 else pixels
        pixels = pixels[::-1] if orientation in (3, 4, 7, 8) else pixels
        pixels = pixels[:, ::-1] if orientation in (2, 3, 6, 7) else pixels
        assert np.array_equal(np.asarray(to_rgb(photo, upright=True)), pixels)


def test_damaged_exif_is_ignored(tmp_path):
    (tmp_path / "photo").write_bytes(saved(PHOTO, "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"))
    with opened(tmp_path / "photo") as photo:
        assert np.array_equal(np.asarray(to_rgb(photo, upright=True)), np.asarray(PHOTO))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_ignored_by_default(tmp_path, load, kind):
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
