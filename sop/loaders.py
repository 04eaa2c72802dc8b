"""Loaders of a data set's images: of training batches, drawn by a sampler, and of test images in order."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.data import DataLoader

from sop.dataset import ImageSet, SkippingImageSet, collate_shard
from sop.images.image_cache import CachedImageSet, CachedLoader
from sop.images.reading import usable_cores
from sop.images.transforms import PUBLISHED, Resizing, test_transform, train_transform
from sop.samplers import EpochSampler, RandomIdentitySampler, RandomSampler, TripletSampler
from sop.splits import Split, class_map, read_split, repeats
from utils.errors import InputError, choose
from utils.io.neighbours import load_neighbours
from utils.runtime.signals import die_with_parent


@dataclass(frozen=True, kw_only=True)
class LoaderSettings:
    """Settings of the `dataset` ingredient, which explains them, and how the backbone has photos resized."""

    data_path: Path | str
    train_file: str
    test_file: str | Sequence[str]
    val_file: str | None
    batch_size: int
    sample_per_id: int
    test_batch_size: int
    sampler: str
    num_workers: int
    pin_memory: bool
    crop_size: int
    decode: str
    image_cache: Path | str | None
    skip_unreadable: bool
    recalls: Sequence[int]
    num_identities: int
    num_iterations: int | None
    train_cache_nn_inds: Path | str | None
    resizing: Resizing = PUBLISHED
    num_negatives: int = 1  # of each anchor, drawn by the sampler 'triplet'


class Loaders(NamedTuple):
    """Loaders of uint8 images (B, 3, crop, crop), labels (B,) and positions (B,)."""

    train: DataLoader | None  # None without `training`
    num_classes: int  # of the training images
    query: DataLoader  # test images, in order
    query_train: DataLoader  # training images with the test transform, in order
    gallery: DataLoader | None  # None: the queries are searched among themselves

    def neighbours(self, path: Path | str) -> torch.Tensor:
        """Read the neighbour file of the test images, int64 (queries, K); InputError if it does not fit them."""
        queries, gallery = _size(self.query), _size(self.gallery or self.query)
        other_sets = {"training": _size(self.query_train)}
        paths = self.query.dataset.paths  # type: ignore[attr-defined]
        return torch.from_numpy(load_neighbours(path, queries, gallery, other_sets, self.gallery is None, paths))

    @property
    def num_test_photos(self) -> int:
        """Queries and gallery."""
        return sum(_size(loader) for loader in (self.query, self.gallery) if loader is not None)

    def photo_sizes(self) -> list[int]:
        """The size in bytes of each photo that a training reads, -1 for a missing one."""
        loaders = [loader for loader in (self.train, self.query, self.gallery) if loader is not None]
        return [size for loader in loaders for size in loader.dataset.sizes()]  # type: ignore[attr-defined]


def make_loaders(
    settings: LoaderSettings, training: bool, device: torch.device | None = None, timeout_minutes: float = 0
) -> Loaders:
    """The loaders of some settings; `sop.ingredient.get_loaders` says what the other arguments do."""
    test_files = query_files(settings.test_file, settings.val_file, training)
    _check(settings, test_files, training)
    train_split = read_split(settings.data_path, settings.train_file)
    test_splits = [read_split(settings.data_path, file) for file in test_files]
    tests = list(zip(test_files, test_splits, strict=True))
    for line in (*repeats((settings.train_file, train_split)), *repeats(*tests)):
        print(line)
    train_labels, test_labels = class_map(train_split), class_map(*test_splits)
    options = _loader_options(settings, device, timeout_minutes)
    train = _train_loader(settings, train_split, train_labels, len(test_splits[0].paths), options) if training else None
    query, *gallery = (_test_loader(settings, file, split, test_labels, options) for file, split in tests)
    return Loaders(
        train=train,
        num_classes=len(train_labels),
        query=query,
        query_train=_test_loader(settings, settings.train_file, train_split, train_labels, options),
        gallery=gallery[0] if gallery else None,
    )


def query_files(test_file: str | Sequence[str], val_file: str | None, training: bool) -> list[str]:
    """The split files of queries and, if it differs, of the gallery."""
    if training and val_file is not None:
        return [val_file]
    return [test_file] if isinstance(test_file, str) else list(test_file)


def _check(settings: LoaderSettings, test_files: list[str], training: bool) -> None:
    """Raise InputError for settings that contradict each other."""
    batch_size, sample_per_id, recalls = settings.batch_size, settings.sample_per_id, settings.recalls
    if batch_size % sample_per_id:
        raise InputError(f"dataset.batch_size={batch_size} is no multiple of dataset.sample_per_id={sample_per_id}")
    if training and 1 not in recalls:
        raise InputError(f"dataset.recalls={list(recalls)} lacks 1: training chooses its best epoch by R@1")
    if len(test_files) > 2:
        raise InputError(f"dataset.test_file={test_files}: give one file, or two, query and gallery")


def _loader_options(settings: LoaderSettings, device: torch.device | None, timeout_minutes: float) -> dict:
    """What all loaders are made with. There are no more workers than cores, and a line says so."""
    cores = usable_cores()
    if settings.num_workers > cores:
        print(
            f"dataset.num_workers={settings.num_workers}, but this process has {cores} cores: {cores} workers are used"
        )
    workers = min(settings.num_workers, cores)
    for_cuda = torch.cuda.is_available() if device is None else device.type == "cuda"
    return {
        "num_workers": workers,
        "pin_memory": settings.pin_memory and for_cuda,
        "timeout": 60 * timeout_minutes if workers else 0,
        # torch's default generator is left to the network, so that a continued run draws the same numbers
        "generator": torch.Generator(),
        "worker_init_fn": die_with_parent,
    }


def _test_loader(
    settings: LoaderSettings, file: str, split: Split, labels: dict[int, int], options: dict
) -> DataLoader:
    """The images of a split file, in order, with the test transform."""
    photos, pixels = (settings.data_path, split, labels), (settings.crop_size, settings.decode)
    if settings.image_cache is not None:
        cache = Path(settings.image_cache) / file.replace("/", "_")
        cached = CachedImageSet(*photos, *pixels, cache, settings.resizing)
        return CachedLoader(cached, batch_size=settings.test_batch_size, **options)
    images = ImageSet(*photos, test_transform(*pixels, settings.resizing))
    return DataLoader(images, batch_size=settings.test_batch_size, **options)


def _train_loader(
    settings: LoaderSettings, split: Split, labels: dict[int, int], num_test_images: int, options: dict
) -> DataLoader:
    """The training images, in the sampler's batches."""
    kind = SkippingImageSet if settings.skip_unreadable else ImageSet
    transform = train_transform(settings.crop_size, settings.decode, settings.resizing)
    images = kind(settings.data_path, split, labels, transform)
    sampler = choose(SAMPLERS, settings.sampler, "dataset.sampler")(settings, images, num_test_images)
    own = {"batch_sampler": sampler, "persistent_workers": options["num_workers"] > 0, "collate_fn": collate_shard}
    return DataLoader(images, **options | own)


def _random(settings: LoaderSettings, images: ImageSet, _: int) -> EpochSampler:
    return RandomSampler(len(images), settings.batch_size, torch.initial_seed())


def _random_identities(settings: LoaderSettings, images: ImageSet, _: int) -> EpochSampler:
    iterations = settings.num_iterations
    if iterations is None:
        iterations = max(1, len(images) // settings.batch_size)
    sizes = settings.batch_size, settings.num_identities, iterations
    return RandomIdentitySampler(images.labels, *sizes, torch.initial_seed())


def _triplets(settings: LoaderSettings, images: ImageSet, num_test_images: int) -> EpochSampler:
    file, n = settings.train_cache_nn_inds, len(images)
    if file is None:
        raise InputError("the sampler 'triplet' needs dataset.train_cache_nn_inds, the training images' neighbour file")
    other_sets = {"test": num_test_images}
    neighbours = load_neighbours(file, n, n, other_sets, is_self_search=True, paths=images.paths)
    return TripletSampler(images.labels, neighbours, settings.batch_size, torch.initial_seed(), settings.num_negatives)


SAMPLERS = {"random": _random, "random_id": _random_identities, "triplet": _triplets}


def _size(loader: DataLoader) -> int:
    return len(loader.dataset)  # type: ignore[arg-type]
