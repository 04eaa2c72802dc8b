"""Photos to features: the half of `Reranker` that embeds."""

from collections.abc import Iterable
from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from models.network import RerankingNetwork
from rrt.arguments import Options, checked_options, device_of
from rrt.features import Features, are_features, as_float32
from rrt.images import NEEDS_MAPS, Photo, as_list, pixels_of
from sop.images.transforms import Resizing, test_transform
from utils.errors import InputError
from utils.runtime.device import MicroBatches
from utils.runtime.precision import dtype_of, float32_throughout

IMAGES_AT_ONCE = 64  # read before they are embedded; of 224 x 224 pixels they take 10 MB
Images = Photo | Iterable[Photo] | Features


class PhotoEmbedder:
    """A network in eval mode, on a device, that embeds images of any size."""

    @float32_throughout()
    def __init__(self, network: RerankingNetwork, crop_size: int, device: torch.device | str | None):
        network.backbone.check_crop_size(crop_size)
        self.device = device_of(device)
        self.network, self.crop_size = network.eval().requires_grad_(False), crop_size
        self.network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.resizing = Resizing(**network.backbone.resizing)
        self._embedders = {torch.float32: network.embedder()}
        self._transform = test_transform(crop_size, resizing=self.resizing)

    def embed(
        self,
        images: Photo | Iterable[Photo],
        progress: bool = False,
        batch_size: int | None = None,
        precision: str = "fp32",
    ) -> Features:
        """Descriptors (n, dg) and local maps (n, dl, h, w) of one or more images, float32, on the CPU.

        InputError, with the position of the image, where one cannot be read.
        """
        progress, batch_size, precision = checked_options(progress, batch_size, precision)
        images, parts, images_at_once = as_list(images), [], batch_size or IMAGES_AT_ONCE
        with tqdm(total=len(images), desc="Embedding", unit="image", disable=not progress) as bar:
            for start in range(0, len(images), images_at_once):
                batch = images[start : start + images_at_once]
                pixels = [self._pixels_of(image, start + i) for i, image in enumerate(batch)]
                parts.append(self.embed_pixels(torch.stack(pixels), batch_size, precision))
                bar.update(len(batch))
        return Features(*map(torch.cat, zip(*parts, strict=True))) if parts else self._nothing()

    def pixels(self, image: Photo) -> Tensor:
        """The network's input for an image, uint8 (3, crop_size, crop_size)."""
        return pixels_of(image, self._transform)

    def _pixels_of(self, image: Photo, position: int) -> Tensor:
        try:
            return self.pixels(image)
        except InputError as error:
            raise InputError(f"image {position}: {error}") from error

    def embed_pixels(self, pixels: Tensor, batch_size: int | None = None, precision: str = "fp32") -> Features:
        """Features of `pixels`, uint8 (n, 3, crop_size, crop_size), in micro-batches."""
        dtype = dtype_of(precision, self.device)

        @float32_throughout(tf32=precision == "tf32")
        def embed(batch: Tensor) -> tuple[Tensor, Tensor]:
            if dtype not in self._embedders:
                self._embedders[dtype] = self.network.embedder(dtype)
            descriptors, maps = self._embedders[dtype](batch.to(self.device))
            return F.normalize(descriptors, dim=1).cpu(), maps.float().contiguous().cpu()

        return Features(*MicroBatches(embed, self.device, batch_size and batch_size * self.crop_size**2)(pixels))

    def _as_features(self, images: Images, **options: Unpack[Options]) -> Features:
        """The features of images; features are returned as they are."""
        if isinstance(images, Features):
            return images
        if isinstance(images, tuple | list) and len(images) == 2 and are_features(images):
            return Features(*images)
        return self.embed(images, **options)

    def _checked(self, images: Images, rows: Tensor | None = None, **options: Unpack[Options]) -> Features:
        """Features as float32 tensors, of all rows or some. InputError for features of another network, and for NaN."""
        features = self._as_features(images, **options)
        made_by = self.network.settings
        dg, dl = made_by.num_global_features, made_by.num_local_features
        descriptors, maps = (tuple(part.shape) for part in features)
        if (descriptors[1], maps[1]) != (dg, dl):
            raise InputError(
                f"features of descriptors {descriptors} and maps {maps} are not of this network: "
                f"expected (n, {dg}) and (n, {dl}, h, w). {NEEDS_MAPS}"
            )
        features = Features(*map(as_float32, features if rows is None else features[rows.numpy()]))
        for part in features:
            is_finite = part.flatten(1).isfinite().all(dim=1)
            if not is_finite.all():
                row = int(is_finite.int().argmin())
                raise InputError(
                    f"the features of image {row if rows is None else rows[row]} hold NaN or infinite numbers: leave "
                    "it out, or embed it again"
                )
        return features

    def _nothing(self) -> Features:
        """Features of no image, of the shapes that a blank one's have."""
        blank = torch.zeros(1, 3, self.crop_size, self.crop_size, dtype=torch.uint8, device="cpu")
        return self.embed_pixels(blank)[:0]
