"""Augmented crops of the training images, embedded once by a frozen backbone (`frozen_views`)."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sop.dataset import Draw, ImageSet
from sop.samplers import EpochSampler
from utils.errors import InputError
from utils.store.array_file import on_device_if_they_fit, one_ahead

LOADED_AT_ONCE = 256  # images that a worker loads at a time
CPU = torch.device("cpu")


class ViewSet(Dataset):
    """`views` augmented crops of each of n images: item v * n + i is crop v of image i, with the key (seed, v, i)."""

    def __init__(self, images: ImageSet, views: int, seed: int):
        self.images, self.views, self.seed = images, views, seed

    def __len__(self) -> int:
        return self.views * len(self.images)

    def __getitem__(self, item: int) -> tuple[Tensor, int, int]:
        view, image = divmod(item, len(self.images))
        return self.images[Draw(image, (self.seed, view, image))]


class EmbeddedViews:
    """A train loader that yields feature maps (B, C, h, w) instead of images, each of a random crop of its image.

    The crops are drawn with the key of a batch's first draw, so that they are determined by the seed. The feature maps
    of all crops are on `device` if they fit there; else each batch is gathered in pinned memory while the batch before
    is in use.
    """

    def __init__(
        self, loader: DataLoader, views: int, embed: Callable[[DataLoader], Tensor], device: torch.device = CPU
    ):
        """`embed` computes feature maps of a loader's images. InputError for fewer than 1 view."""
        if views < 1:
            raise InputError(f"frozen_views={views}: give 1 or more, or None for a new view at every draw")
        self.dataset: ImageSet = loader.dataset  # type: ignore[assignment]
        self.batch_sampler: EpochSampler = loader.batch_sampler  # type: ignore[assignment]
        self.views, self.length = views, len(loader)
        self.labels = torch.from_numpy(self.dataset.labels)
        all_views = ViewSet(self.dataset, views, self.batch_sampler.seed)
        inherited = ("num_workers", "pin_memory", "timeout", "worker_init_fn")
        options = {name: getattr(loader, name) for name in inherited}
        maps = embed(DataLoader(all_views, LOADED_AT_ONCE, **options))
        self.maps: Tensor = on_device_if_they_fit(maps, device)  # type: ignore[assignment]
        self.is_pinned = self.maps.device != device

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        return one_ahead(self._gathered, self.batch_sampler.global_batches())

    def _gathered(self, batch: list[Draw]) -> tuple[Tensor, Tensor, Tensor]:
        shard = self.batch_sampler.shard(len(batch))
        positions = torch.tensor([draw.image for draw in batch[shard]], dtype=torch.int64)
        views = np.random.default_rng(batch[0].key).integers(self.views, size=len(batch))[shard]
        rows = torch.from_numpy(views) * len(self.labels) + positions
        maps = self.maps.new_empty(len(rows), *self.maps.shape[1:], pin_memory=self.is_pinned)
        torch.index_select(self.maps, 0, rows.to(maps.device), out=maps)
        return maps, self.labels[positions], positions
