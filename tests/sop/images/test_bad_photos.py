"""What is no photo, or a damaged one: an error that names it, in each decode mode."""

import os
import socket
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from sop.dataset import ImageSet
from sop.preparation.verify import verify_images
from sop.splits import Split
from tests.sop.images.test_photo import PALETTE, PHOTO, saved, sixteen
from utils.errors import InputError

JPEG, PNG = saved(PHOTO, "JPEG"), saved(PHOTO, "PNG")
UNKNOWN_MODE = b"Image type: Gr\r\nImage size (x*y): 8*8\r\nFile size (no of images): 1\r\n".ljust(512, b"\0") + bytes(
    64
)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no photo",
        JPEG[:2],
        JPEG[:300],
        JPEG[: len(JPEG) // 2],
        PNG[: len(PNG) // 2],
        PNG.replace(b"IDAT", b"IDAZ"),
        saved(PALETTE, "GIF")[:900],
        sixteen("TIFF")[:5000],
        saved(PHOTO, "WEBP")[:200],
        saved(PHOTO, "BMP")[:1000],
        UNKNOWN_MODE,
    ],
    ids=["empty", "text", "2", "300", "jpeg", "png", "no-data", "gif", "tiff", "webp", "bmp", "mode"],
)
@pytest.mark.filterwarnings("ignore:IM image format is deprecated:DeprecationWarning")
def test_a_damaged_photo_is_named(tmp_path, load, content):
    (tmp_path / "photo").write_bytes(content)
    told = rf"^photo {tmp_path}/photo cannot be read \(.+\): replace it or take it out of the list$"
    with pytest.raises(InputError, match=told):
        load("photo")
    with pytest.raises(InputError, match="of 1 images 0 are missing and 1 unreadable"):
        verify_images(tmp_path, ["photo"])


def test_a_folder_or_pipe_is_named(tmp_path, load):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(tmp_path / "socket"))
        for name in ("folder", "pipe", "device", "socket"):
            told = f"photo {tmp_path}/{name} is a folder, a pipe or a device: take it out of the list"
            with pytest.raises(InputError) as raised:
                load(name)
            assert str(raised.value) == told
        with pytest.raises(InputError, match="of 4 images 0 are missing and 4 unreadable"):
            verify_images(tmp_path, ["folder", "pipe", "device", "socket"])


def test_unopenable_photo_is_named(tmp_path, load):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_text("")
    for name, told in {
        "gone": r"gone does not exist: run prepare_data\.py, or set dataset\.data_path",
        "file/below": r"below cannot be read \(Not a directory\): replace it",
        "loop": r"loop cannot be read \(Too many levels of symbolic links\): replace it",
        "x" * 300: r"x cannot be read \(File name too long\): replace it",
    }.items():
        with pytest.raises(InputError, match=rf"^photo {tmp_path}/.*{told}"):
            load(name)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # PIL's for more than `MAX_IMAGE_PIXELS`
def test_too_many_pixels(tmp_path, load, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for side, told in (
        (32, "has 32 x 32 pixels, more than 1,000: resize it"),
        (45, r"cannot be read \(Image size \(2025 pixels\)"),  # PIL refuses more than twice as many
    ):
        (tmp_path / "photo").write_bytes(saved(Image.new("RGB", (side, side)), "JPEG"))
        with pytest.raises(InputError, match=f"photo .*/photo {told}"):
            load("photo")
    (tmp_path / "photo").write_bytes(saved(Image.new("RGB", (31, 31)), "JPEG"))
    assert load("photo").unique().tolist() == [0]


OF_PIL = [struct.error, OverflowError, zlib.error, IndexError, TypeError, AttributeError, EOFError, ZeroDivisionError]


@pytest.mark.parametrize(
    "error", [MemoryError(), KeyError("mode"), RecursionError("x"), *(kind("x") for kind in OF_PIL)]
)
def test_any_error_of_pil_names_the_photo(tmp_path, load, monkeypatch, error):
    def fail(*_, **__):
        raise error

    (tmp_path / "photo").write_bytes(PNG)
    told = rf"photo .*/photo cannot be read \({str(error) or 'MemoryError'}\): replace it"
    for owner, name in ((Image, "open"), (ImageFile.ImageFile, "load")):
        with monkeypatch.context() as patch, pytest.raises(InputError, match=told):
            patch.setattr(owner, name, fail)
            load("photo")


def test_errors_of_the_transform_are_not_translated(tmp_path):
    (tmp_path / "photo").write_bytes(PNG)
    images = ImageSet(tmp_path, Split(["photo"], [0]), {0: 0}, lambda photo: photo.nonsense)
    with pytest.raises(AttributeError, match="nonsense"):
        images[0]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"])
def test_random_corruption_gives_pixels_or_an_error(tmp_path, load, kind):
    rng, whole, outcomes = np.random.default_rng(0), saved(PALETTE if kind == "GIF" else PHOTO, kind), set()
    for _ in range(60):
        content = bytearray(whole)
        for position in rng.integers(min(len(whole), 300), size=rng.integers(1, 4)):
            content[position] = rng.integers(256)
        (tmp_path / "photo").write_bytes(content)
        try:
            load("photo")
            outcomes.add("pixels")
        except InputError as error:
            assert str(tmp_path / "photo") in str(error)
            outcomes.add("error")
    assert outcomes == {"pixels", "error"} or kind == "PNG"
