"""Random views of the training images, embedded once: what a frozen backbone is trained on with `frozen_views`."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sop.dataset import Draw, ImageSet
from sop.samplers import EpochSampler
from utils.errors import InputError

LOADED_AT_ONCE = 256  # images that a worker loads at a time


class ViewSet(Dataset):
    """`views` random views of each of n images: item v * n + i is view v of image i, drawn by the key (seed, v, i)."""

    def __init__(self, images: ImageSet, views: int, seed: int):
        self.images, self.views, self.seed = images, views, seed

    def __len__(self) -> int:
        return self.views * len(self.images)

    def __getitem__(self, item: int) -> tuple[Tensor, int, int]:
        view, image = divmod(item, len(self.images))
        return self.images[Draw(image, (self.seed, view, image))]


class EmbeddedViews:
    """What a train loader yields, with maps (B, C, h, w) in place of images: each draw takes one of its image's views.

    Which ones follows from the key of a batch's first draw: a seed gives one run.
    """

    def __init__(self, loader: DataLoader, views: int, embed: Callable[[DataLoader], Tensor]):
        """`embed` makes maps of the images that a loader yields. InputError for fewer than 1 view."""
        if views < 1:
            raise InputError(f"frozen_views={views}: give 1 or more, or None for a new view at every draw")
        self.dataset: ImageSet = loader.dataset  # type: ignore[assignment]
        self.batch_sampler: EpochSampler = loader.batch_sampler  # type: ignore[assignment]
        self.views, self.length = views, len(loader)
        self.labels = torch.from_numpy(self.dataset.labels)
        all_views = ViewSet(self.dataset, views, self.batch_sampler.seed)
        shared = ("num_workers", "pin_memory", "worker_init_fn")
        options = {name: getattr(loader, name) for name in shared}
        self.maps = embed(DataLoader(all_views, LOADED_AT_ONCE, **options))

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        images = len(self.labels)
        for batch in self.batch_sampler.whole_batches():
            own = self.batch_sampler.share(len(batch))
            positions = torch.tensor([draw.image for draw in batch[own]], dtype=torch.int64)
            views = np.random.default_rng(batch[0].key).integers(self.views, size=len(batch))[own]
            yield self.maps[torch.from_numpy(views) * images + positions], self.labels[positions], positions
