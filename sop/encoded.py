"""Photos that leave a loader encoded and are decoded on the device that embeds them: `dataset.decode=device`.

On a GPU nvJPEG decodes a batch at once; on a CPU libjpeg does, one photo after another. Then torch resizes.
"""

import io
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor
from tqdm import tqdm

from sop.decoding import View, exact, resized_view, to_tensor
from sop.photo import FORMATS, file_content, naming, to_rgb
from utils.errors import InputError

END = b"\xff\xd9"  # of a JPEG file
EXIF = re.compile(rb"\xff\xe1(?=..Exif\0\0)", re.DOTALL)  # where its EXIF begins
IGNORED = b"\xff\xec"
MAX_REFUSED = 4  # photos of a batch, one by one: where a decoder refuses all, a batch costs it a few calls


class EncodedPhoto(NamedTuple):
    """A JPEG's bytes, uint8 (n,), or the view's pixels (3, h, w) of what is not to be decoded elsewhere."""

    content: Tensor
    view: View
    name: str


def encoded(photo: Image.Image, view: View) -> EncodedPhoto:
    """A photo's bytes; PIL decodes what decoders treat differently: a JPEG cut off or not in RGB.

    The EXIF is hidden, by which some decoders turn a photo: nothing else here does.
    """
    if isinstance(photo, JpegImageFile) and photo.fp and photo.mode == "RGB":
        content = file_content(photo)
        if content.endswith(END):
            unturned = bytearray(EXIF.sub(IGNORED, content))
            return EncodedPhoto(torch.frombuffer(unturned, dtype=torch.uint8), view, str(photo.filename))
    return EncodedPhoto(exact(photo, view), view, "")


class EncodedPhotos:
    """A batch of them, of which `to` makes pixels, as of a batch of images."""

    def __init__(self, photos: Sequence[EncodedPhoto]):
        contents, self.views, self.names = zip(*photos, strict=True)
        self.shapes = [content.shape for content in contents]
        self.contents = torch.cat([content.flatten() for content in contents])  # a worker passes one file a tensor

    def __len__(self) -> int:
        return len(self.views)

    def to(self, device: torch.device, non_blocking: bool = False) -> Tensor:
        """The views' pixels, uint8 (B, 3, h, w), on a device; InputError for a photo that cannot be read."""
        contents = self.contents.split([shape.numel() for shape in self.shapes])
        files = [i for i, shape in enumerate(self.shapes) if len(shape) == 1]
        photos = iter(_decoded([contents[i] for i in files], [self.names[i] for i in files], device))
        return torch.stack(
            [
                resized_view(next(photos), view) if len(shape) == 1 else content.view(shape).to(device)
                for content, shape, view in zip(contents, self.shapes, self.views, strict=True)
            ]
        )


def collate(items: Sequence[tuple[EncodedPhoto, int, int]]) -> tuple[EncodedPhotos, Tensor, Tensor]:
    """A batch of what an `ImageSet` yields."""
    photos, labels, positions = zip(*items, strict=True)
    return EncodedPhotos(photos), torch.tensor(labels), torch.tensor(positions)


def jpeg_decoder() -> Callable:
    """torchcodec's; InputError where it cannot be loaded."""
    try:
        from torchcodec.decoders import decode_jpeg  # only "device" needs it
    except (ImportError, OSError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"dataset.decode='device' needs torchcodec, which cannot be loaded ({reason}): install the version of "
            "requirements.txt, or set decode to 'exact' or 'fast'"
        ) from error
    return decode_jpeg


def _decoded(files: list[Tensor], names: list[str], device: torch.device) -> list[Tensor]:
    """RGB (3, h, w) of JPEG files on a device.

    What the decoder refuses in a batch it is asked for again in halves, down to single photos. These are PIL's, which
    decides whether one is damaged, and after `MAX_REFUSED` of them so is what the decoder refuses.
    """
    decode_jpeg, by_pil = jpeg_decoder(), 0
    reasons: list[str] = []

    def decode(indices: range) -> list[Tensor]:
        nonlocal by_pil
        try:
            return list(decode_jpeg([files[i] for i in indices], device=device))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            if len(indices) == 1 or len(reasons) >= MAX_REFUSED:
                reasons.append(f"{names[indices[0]]} ({error})")
                by_pil += len(indices)
                return [_by_pil(files[i], names[i]).to(device) for i in indices]
        half = len(indices) // 2
        return decode(indices[:half]) + decode(indices[half:])

    photos = decode(range(len(files))) if files else []
    if by_pil:
        tqdm.write(f"dataset.decode=device: PIL has decoded {by_pil} of {len(files)} photos, the first {reasons[0]}")
    return photos


def _by_pil(file: Tensor, name: str) -> Tensor:
    with naming(name):
        photo = Image.open(io.BytesIO(file.numpy().tobytes()), formats=FORMATS)
    photo.filename = name
    return to_tensor(to_rgb(photo))
