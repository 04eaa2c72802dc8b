"""What is no photo, or a damaged one: an error that names it, in each decode mode."""

import os
import socket
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from sop.dataset import ImageSet
from sop.preparation.verify import verify_images
from sop.splits import Split
from tests import ROOT
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


def test_too_many_pixels(tmp_path, load, monkeypatch):
    """PIL warns of more than `MAX_IMAGE_PIXELS`, and refuses more than twice as many."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for side, fine in ((31, True), (32, False), (45, False)):
        (tmp_path / "photo").write_bytes(saved(Image.new("RGB", (side, side)), "JPEG"))
        if fine:
            assert load("photo").unique().tolist() == [0]
        else:
            with pytest.raises(InputError, match=rf"photo .*/photo cannot be read \(Image size \({side**2} pixels\)"):
                load("photo")


def test_too_many_pixels_in_a_subprocess(tmp_path):
    (tmp_path / "photo").write_bytes(saved(Image.new("1", (10000, 9000)), "PNG"))
    imports = "import sys; from pathlib import Path; from sop.images.photo import opened"
    code = f"{imports}\nwith opened(Path(sys.argv[1])): pass"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, tmp_path / "photo"], cwd=ROOT, capture_output=True, text=True
    )
    assert f"InputError: photo {tmp_path}/photo has 10000 x 9000 pixels, more than 89,478,485: resize it" in done.stderr


@pytest.mark.parametrize(
    "error",
    [
        struct.error("unpack requires 4 bytes"),
        OverflowError("too large"),
        MemoryError(),
        zlib.error("Error -3"),
        IndexError("out of range"),
        TypeError("no integer"),
        KeyError("mode"),
        AttributeError("no fp"),
        EOFError("no more"),
        ZeroDivisionError("by zero"),
        RuntimeError("decoder"),
        RecursionError("depth"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_any_error_of_pil_names_the_photo(tmp_path, load, monkeypatch, error):
    def fail(*_, **__):
        raise error

    (tmp_path / "photo").write_bytes(PNG)
    told = rf"photo .*/photo cannot be read \({str(error) or 'MemoryError'}\): replace it"
    for name in ("open", "load"):
        with monkeypatch.context() as patch:
            patch.setattr(*{"open": (Image, "open", fail), "load": (ImageFile.ImageFile, "load", fail)}[name])
            with pytest.raises(InputError, match=told):
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
