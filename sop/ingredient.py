"""The `dataset` ingredient: its settings, and the loaders made from them."""

from pathlib import Path
from typing import NamedTuple

import torch
from sacred import Ingredient
from torch.utils.data import DataLoader

from sop.dataset import ImageSet, SkippingImageSet, collate_shard
from sop.images.image_cache import CachedImageSet, CachedLoader
from sop.images.reading import usable_cores
from sop.images.transforms import CROP_FRACTION, DECODERS, test_transform, train_transform
from sop.samplers import EpochSampler, RandomIdentitySampler, RandomSampler, TripletSampler
from sop.splits import Split, class_map, read_split, repeats
from utils.errors import InputError
from utils.io.neighbours import load_neighbours
from utils.runtime.signals import die_with_parent
from utils.settings import FLAG, TEXT, Rules, check_settings, either, list_of, one_of, whole_number

data_ingredient = Ingredient("dataset", save_git_info=False)  # the commands note all modules

SOP_TRAINING_IMAGES = 59551
DATASET_RULES: Rules = {
    "name": TEXT,
    "data_path": TEXT,
    "train_file": TEXT,
    "test_file": either(TEXT, list_of(TEXT)),
    "val_file": TEXT.or_none(),
    "batch_size": whole_number(1),
    "sample_per_id": whole_number(1),
    "test_batch_size": whole_number(1),
    "sampler": one_of("random", "random_id", "triplet"),
    "num_workers": whole_number(0),
    "pin_memory": FLAG,
    "crop_size": whole_number(32, 4096),
    "decode": one_of(*DECODERS),
    "image_cache": TEXT.or_none(),
    "skip_unreadable": FLAG,
    "recalls": list_of(whole_number(1, 1_000_000)),
    "num_identities": whole_number(1),
    "num_iterations": whole_number(1).or_none(),
    "train_cache_nn_inds": TEXT.or_none(),
}


def _quotient(dividend: object, divisor: object) -> int | None:
    """The integer quotient; None for settings that `DATASET_RULES` refuse."""
    are_valid = isinstance(dividend, int) and isinstance(divisor, int) and divisor > 0
    return dividend // divisor if are_valid else None  # type: ignore[operator]


@data_ingredient.config
def config():
    name = "sop"  # names the checkpoint
    data_path = "data/Stanford_Online_Products"
    train_file = "train.txt"
    test_file = "test.txt"  # or two files: query and gallery
    val_file = None  # images for validation, searched among themselves; None: the test set
    batch_size = 128  # a multiple of sample_per_id
    sample_per_id = 2
    test_batch_size = 256
    sampler = "random"  # 'random', 'random_id' or 'triplet'
    num_workers = 8
    pin_memory = True
    crop_size = 224
    decode = "exact"  # PIL's pixels; or 'fast': nearly the same, of JPEGs decoded at half their size or less
    image_cache = None  # folder that caches resized test images; SOP's test set takes 12 GB
    skip_unreadable = False  # True: replace an unreadable training photo by another of its class, and list it
    recalls = [1, 10, 100, 1000]
    num_identities = _quotient(batch_size, sample_per_id)  # classes in a batch of 'random_id'
    num_iterations = _quotient(
        SOP_TRAINING_IMAGES, batch_size
    )  # batches in an epoch of 'random_id'; None: images // batch_size
    train_cache_nn_inds = None  # neighbour file of the training images, for 'triplet'
    test_cache_nn_inds = None  # recorded only


@data_ingredient.named_config
def sop_global():
    name = "sop_global"
    batch_size = 800
    test_batch_size = 800
    sampler = "random_id"


@data_ingredient.named_config
def sop_rerank():
    name = "sop_rerank"
    batch_size = 300
    test_batch_size = 600
    sampler = "triplet"
    recalls = [1, 10, 100]
    train_cache_nn_inds = "rrt_sop_caches/rrt_r50_sop_nn_inds_train.pkl"
    test_cache_nn_inds = "rrt_sop_caches/rrt_r50_sop_nn_inds_test.pkl"


@data_ingredient.named_config
def demo_global():
    name = "demo_global"
    data_path = "data/demo"
    batch_size = 128
    sample_per_id = 4
    test_batch_size = 100
    sampler = "random_id"
    num_iterations = None
    crop_size = 96
    recalls = [1, 10, 100]


@data_ingredient.named_config
def demo_rerank():
    name = "demo_rerank"
    data_path = "data/demo"
    batch_size = 150
    test_batch_size = 100
    sampler = "triplet"
    crop_size = 96
    recalls = [1, 10, 100]


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

    def photo_sizes(self) -> list[int]:
        """The size in bytes of each photo that a training reads, -1 for a missing one."""
        loaders = [loader for loader in (self.train, self.query, self.gallery) if loader is not None]
        return [size for loader in loaders for size in loader.dataset.sizes()]  # type: ignore[attr-defined]


@data_ingredient.capture
def get_loaders(
    data_path,
    train_file,
    test_file,
    batch_size,
    sample_per_id,
    test_batch_size,
    sampler,
    num_workers,
    pin_memory,
    crop_size,
    recalls,
    num_identities,
    num_iterations,
    train_cache_nn_inds,
    val_file=None,
    decode="exact",
    image_cache=None,
    skip_unreadable=False,
    training=True,
    device: torch.device | None = None,
    timeout_minutes: float = 0,
    interpolation: str = "bilinear",
    crop_fraction: float = CROP_FRACTION,
) -> tuple[Loaders, list[int]]:
    """Make the loaders, and return the Ks of recalls; inside a run, Sacred fills in the arguments from the config.

    Without `training` there is no train loader, and its neighbour file is not read. The train loader is seeded with
    torch's initial seed. With `training`, the query loader has the images of `val_file` if that is set. Memory is
    pinned for a CUDA `device` only; None: if CUDA is available. Torch raises a RuntimeError after waiting for
    `timeout_minutes` for a batch of the workers; 0: never. `interpolation` and `crop_fraction` are the backbone's.
    InputError for settings that contradict each other, and for missing or malformed files.
    """
    if batch_size % sample_per_id:
        raise InputError(f"dataset.batch_size={batch_size} is no multiple of dataset.sample_per_id={sample_per_id}")
    test_files = _query_files(test_file, val_file, training)
    if training and 1 not in recalls:
        raise InputError(f"dataset.recalls={list(recalls)} lacks 1: training chooses its best epoch by R@1")
    if len(test_files) > 2:
        raise InputError(f"dataset.test_file={test_files}: give one file, or two, query and gallery")
    train_split = read_split(data_path, train_file)
    test_splits = [read_split(data_path, file) for file in test_files]
    for line in (*repeats((train_file, train_split)), *repeats(*zip(test_files, test_splits, strict=True))):
        print(line)
    train_labels, test_labels = class_map(train_split), class_map(*test_splits)
    workers = _usable_workers(num_workers)
    for_cuda = torch.cuda.is_available() if device is None else device.type == "cuda"
    # torch's default generator is left to the network, so that a continued run draws the same numbers
    options: dict = {
        "num_workers": workers,
        "pin_memory": pin_memory and for_cuda,
        "timeout": 60 * timeout_minutes if workers else 0,
        "generator": torch.Generator(),
        "worker_init_fn": die_with_parent,
    }

    def in_order(file: str, split: Split, labels: dict[int, int]) -> DataLoader:
        if image_cache is not None:
            cache = Path(image_cache) / file.replace("/", "_")
            cached = CachedImageSet(data_path, split, labels, crop_size, decode, cache, interpolation, crop_fraction)
            return CachedLoader(cached, batch_size=test_batch_size, **options)
        images = ImageSet(data_path, split, labels, test_transform(crop_size, decode, interpolation, crop_fraction))
        return DataLoader(images, batch_size=test_batch_size, **options)

    def make_sampler(images: ImageSet) -> EpochSampler:
        check_settings({"sampler": sampler}, {"sampler": DATASET_RULES["sampler"]}, "dataset.")
        seed = torch.initial_seed()
        if sampler == "random":
            return RandomSampler(len(images), batch_size, seed)
        if sampler == "random_id":
            iterations = max(1, len(images) // batch_size) if num_iterations is None else num_iterations
            return RandomIdentitySampler(images.labels, batch_size, num_identities, iterations, seed)
        if train_cache_nn_inds is None:
            raise InputError(
                "the sampler 'triplet' needs dataset.train_cache_nn_inds, the training images' neighbour file"
            )
        other_sets = {"test": len(test_splits[0].paths)}
        n = len(images)
        neighbours = load_neighbours(train_cache_nn_inds, n, n, other_sets, is_self_search=True, paths=images.paths)
        return TripletSampler(images.labels, neighbours, batch_size, seed)

    train = None
    if training:
        images = (SkippingImageSet if skip_unreadable else ImageSet)(
            data_path, train_split, train_labels, train_transform(crop_size, decode, interpolation)
        )
        sampled = {"batch_sampler": make_sampler(images), "persistent_workers": workers > 0}
        train = DataLoader(images, **options | sampled | {"collate_fn": collate_shard})
    loaders = Loaders(
        train=train,
        num_classes=len(train_labels),
        query=in_order(test_files[0], test_splits[0], test_labels),
        query_train=in_order(train_file, train_split, train_labels),
        gallery=in_order(test_files[1], test_splits[1], test_labels) if len(test_splits) == 2 else None,
    )
    return loaders, list(recalls)


@data_ingredient.capture
def input_files(data_path, train_file, test_file, train_cache_nn_inds, val_file=None, training=False) -> list[Path]:
    """The files that `get_loaders` reads: split files and, with `training`, the neighbour file."""
    names = [train_file, *_query_files(test_file, val_file, training)]
    caches = [Path(train_cache_nn_inds)] if training and train_cache_nn_inds else []
    return [Path(data_path) / name for name in names] + caches


def _query_files(test_file: str | list[str], val_file: str | None, training: bool) -> list[str]:
    """The split files of queries and, if it differs, of the gallery."""
    if training and val_file is not None:
        return [val_file]
    return [test_file] if isinstance(test_file, str) else list(test_file)


def _size(loader: DataLoader) -> int:
    return len(loader.dataset)  # type: ignore[arg-type]


def _usable_workers(num_workers: int) -> int:
    """`num_workers`, but no more than cores, with a printed note."""
    cores = usable_cores()
    if num_workers > cores:
        print(f"dataset.num_workers={num_workers}, but this process has {cores} cores: {cores} workers are used")
    return min(num_workers, cores)
