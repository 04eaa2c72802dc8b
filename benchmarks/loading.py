"""Images loaded by one thread, as a loader's worker has it."""

import sys
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image

from benchmarks import reference
from benchmarks.measure import PLAIN, Stage
from sop.dataset import Draw, ImageSet
from sop.images.image_cache import CachedImageSet
from sop.images.transforms import test_transform, train_transform
from sop.splits import Split


def photos(folder: Path, count: int) -> Split:
    """JPEG photos of SOP's usual size."""
    rng = np.random.default_rng(0)
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8))
        coarse.resize((640, 480), Image.Resampling.BICUBIC).save(folder / f"{i}.JPG", quality=90)
    return Split([f"{i}.JPG" for i in range(count)], [0] * count)


def loading(device: torch.device) -> Stage:
    torch.set_num_threads(1)
    temporary = TemporaryDirectory()
    folder = Path(temporary.name)
    split = photos(folder, 64)
    indices, labels = range(len(split.paths)), {0: 0}
    exact, fast = (ImageSet(folder, split, labels, test_transform(224, decode)) for decode in ("exact", "fast"))
    training = ImageSet(folder, split, labels, train_transform(224, "fast"))
    cached = CachedImageSet(folder, split, labels, 224, "exact", folder / "images")
    with redirect_stdout(sys.stderr):  # stdout has the table
        cached.prepare(batch_size=64, num_workers=0)

    def plain() -> list[torch.Tensor]:
        in_use = Path(temporary.name)  # refers to `temporary`, so that the folder is kept
        return [reference.load(in_use / path, 224) for path in split.paths]

    variants = {
        PLAIN: plain,
        "same pixels": lambda: [exact[i] for i in indices],
        "image cache": lambda: [cached[i] for i in indices],
    }
    if find_spec("simplejpeg"):  # not on every machine that has a GPU
        variants["decode='fast'"] = lambda: [fast[i] for i in indices]
        variants["decode='fast', training"] = lambda: [training[Draw(i, (0, 0, i))] for i in indices]
    return Stage("loading", len(split.paths), "images", variants)
