"""Photos decoded by the device that embeds them."""

import sys
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader

from sop.dataset import Draw, ImageSet
from sop.encoded import collate, jpeg_decoder
from sop.splits import Split
from sop.transforms import test_transform as make_test_transform
from sop.transforms import train_transform
from tests.conftest import NEEDS_TORCHCODEC
from tests.sop.test_decoding import distance, smooth
from tests.test_ingredient import loaders_of
from utils.errors import InputError

pytestmark = NEEDS_TORCHCODEC
CPU = torch.device("cpu")


def stored(folder, *photos, **options) -> tuple[object, Split, dict]:
    for i, photo in enumerate(photos):
        photo.save(folder / f"{i}", **{"format": "JPEG"} | options)
    return folder, Split([f"{i}" for i in range(len(photos))], [7] * len(photos)), {7: 0}


def pil_pixels(path) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)


def resized(pixels: torch.Tensor, size: int) -> torch.Tensor:
    return interpolate(pixels[None], (size, size), mode="bilinear", antialias=True)[0]


SIZES = [(640, 480), (481, 643), (230, 1100), (100, 60), (1, 1)]


@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"progressive": True}])
def test_a_batch_of_the_test_side(tmp_path, options):
    images = ImageSet(
        *stored(tmp_path, *(smooth(*size) for size in SIZES), **options), make_test_transform(96, "device")
    )
    for workers in (0, 2):
        ((photos, labels, positions),) = DataLoader(images, 5, num_workers=workers, collate_fn=collate)
        assert len(photos) == 5
        assert labels.tolist() == [0] * 5
        assert positions.tolist() == [0, 1, 2, 3, 4]
        pixels = photos.to(CPU)
        for i in range(5):
            assert torch.equal(pixels[i], resized(pil_pixels(tmp_path / f"{i}"), 110)[:, 7:103, 7:103])


def test_the_train_side_draws_as_pil_does(tmp_path):
    content = stored(tmp_path, *(smooth(*size) for size in SIZES))
    exact, device = (ImageSet(*content, train_transform(64, decode)) for decode in ("exact", "device"))
    draws = [Draw(i, (seed, 0, i)) for seed in range(8) for i in range(5)]
    for pixels, draw in zip(collate([device[draw] for draw in draws])[0].to(CPU), draws, strict=True):
        assert distance(pixels, exact[draw][0]) < 3, draw


@pytest.mark.parametrize(("mode", "options"), [("L", {}), ("CMYK", {}), ("RGBA", {"format": "PNG"})])
def test_what_decoders_treat_differently_is_decoded_by_pil(tmp_path, mode, options):
    content = stored(tmp_path, smooth(300, 200).convert(mode), smooth(200, 300).convert(mode), **options)
    exact, device = (ImageSet(*content, make_test_transform(112, decode)) for decode in ("exact", "device"))
    pixels = collate([device[0], device[1]])[0].to(CPU)
    assert torch.equal(pixels, torch.stack([exact[0][0], exact[1][0]]))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("corrupt", [False, True])
def test_a_photo_is_not_turned(tmp_path, corrupt):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a right angle
    content = exif.tobytes()[:-4] if corrupt else exif.tobytes()
    images = ImageSet(*stored(tmp_path, smooth(300, 200), exif=content), make_test_transform(112, "device"))
    photos, *_ = collate([images[0]])
    assert photos.shapes[0] == (len((tmp_path / "0").read_bytes()),)
    assert torch.equal(photos.to(CPU)[0], resized(pil_pixels(tmp_path / "0"), 128)[:, 8:120, 8:120])


def test_a_photo_that_is_cut_off_is_named(tmp_path):
    content = stored(tmp_path, smooth(640, 480), smooth(640, 480))
    whole = (tmp_path / "1").read_bytes()
    device = ImageSet(*content, make_test_transform(112, "device"))
    (tmp_path / "1").write_bytes(whole[:5000])
    with pytest.raises(InputError, match=r"photo .*1 cannot be read .*truncated"):
        device[1]
    (tmp_path / "1").write_bytes(whole + b"\0\0")  # more than a JPEG
    assert [device[i][0].content.dim() for i in range(2)] == [1, 3]  # the second by PIL
    assert distance(*collate([device[0], device[1]])[0].to(CPU)) < 1.5


def test_what_the_device_cannot_decode_is_decoded_by_pil(tmp_path, monkeypatch, capsys):
    images = ImageSet(*stored(tmp_path, smooth(64, 48), smooth(48, 64)), make_test_transform(28, "device"))
    photos, *_ = collate([images[0], images[1]])
    expected = photos.to(CPU)

    decode = mock.Mock(side_effect=RuntimeError("bad stream"))
    monkeypatch.setattr("torchcodec.decoders.decode_jpeg", decode)
    assert torch.equal(photos.to(CPU), expected)
    assert f"PIL has decoded 2 of 2 photos, the first {tmp_path}/0 (bad stream)" in capsys.readouterr().out
    photos.contents[len(photos.contents) // 2 :] = 0
    with pytest.raises(InputError, match=r"photo .*/1 cannot be read"):
        photos.to(CPU)
    decode.side_effect = torch.OutOfMemoryError("too little")
    with pytest.raises(torch.OutOfMemoryError):
        photos.to(CPU)


@pytest.mark.parametrize("refused", [[0], [4], [1, 2]])
def test_one_photo_that_the_device_refuses_leaves_the_others_to_it(tmp_path, monkeypatch, capsys, refused):
    images = ImageSet(*stored(tmp_path, *(smooth(*size) for size in SIZES)), make_test_transform(28, "device"))
    photos, *_ = collate([images[i] for i in range(5)])
    expected, decode_jpeg = photos.to(CPU), jpeg_decoder()
    bad = {(tmp_path / f"{i}").read_bytes() for i in refused}
    decoded = []

    def decode(files, device):
        if any(file.numpy().tobytes() in bad for file in files):
            raise RuntimeError("bad stream")
        decoded.extend(files)
        return decode_jpeg(files, device=device)

    monkeypatch.setattr("torchcodec.decoders.decode_jpeg", decode)
    assert torch.equal(photos.to(CPU), expected)
    assert len(decoded) == 5 - len(refused)
    assert f"PIL has decoded {len(refused)} of 5 photos, the first {tmp_path}/{refused[0]} (" in capsys.readouterr().out


def test_a_decoder_that_refuses_everything_is_not_asked_for_each_photo(tmp_path, monkeypatch, capsys):
    images = ImageSet(*stored(tmp_path, *[smooth(64, 48)] * 64), make_test_transform(28, "device"))
    photos, *_ = collate([images[i] for i in range(64)])
    expected = photos.to(CPU)
    decode = mock.Mock(side_effect=RuntimeError("no decoder"))
    monkeypatch.setattr("torchcodec.decoders.decode_jpeg", decode)
    assert torch.equal(photos.to(CPU), expected)
    assert decode.call_count < 20
    assert f"PIL has decoded 64 of 64 photos, the first {tmp_path}/0 (no decoder)" in capsys.readouterr().out


def test_without_torchcodec(photos, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    loaders_of(photos)
    with pytest.raises(InputError, match=r"dataset\.decode='device' needs torchcodec, which cannot be loaded"):
        loaders_of(photos, decode="device")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_decodes_nearly_the_same_pixels(tmp_path, capsys):
    images = ImageSet(*stored(tmp_path, *(smooth(*size) for size in SIZES[:4])), make_test_transform(96, "device"))
    photos, *_ = collate([images[i] for i in range(4)])
    pixels = photos.to(torch.device("cuda"))
    assert pixels.is_cuda
    assert "PIL" not in capsys.readouterr().out
    assert distance(pixels.cpu(), photos.to(CPU)) < 1.5
