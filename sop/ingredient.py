"""The `dataset` ingredient: its settings, and the loaders made from them."""

from dataclasses import fields
from pathlib import Path

import torch
from sacred import Ingredient

from sop.images.transforms import DECODERS
from sop.loaders import SAMPLERS, Loaders, LoaderSettings, make_loaders, query_files
from utils.settings import FLAG, TEXT, Rules, either, list_of, one_of, whole_number

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
    "sampler": one_of(*SAMPLERS),
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

# Settings that do not alter a run, and paths: what the files hold is compared.
MAY_CHANGE_ON_RESUME = {
    "dataset.data_path",
    "dataset.train_file",
    "dataset.test_file",
    "dataset.val_file",
    "dataset.train_cache_nn_inds",
    "dataset.test_cache_nn_inds",
    "dataset.image_cache",
    "dataset.num_workers",
    "dataset.skip_unreadable",
    "dataset.pin_memory",
}


def _quotient(dividend: object, divisor: object) -> int | None:
    """The integer quotient; None for settings that `DATASET_RULES` refuse."""
    are_valid = isinstance(dividend, int) and isinstance(divisor, int) and divisor > 0
    return dividend // divisor if are_valid else None  # type: ignore[operator]


@data_ingredient.config
def config():
    name = "sop"  # names the checkpoint
    data_path = "data/Stanford_Online_Products"  # folder of the photos, and of the lists
    train_file = "train.txt"  # list of training photos, a `path,class` in each line
    test_file = "test.txt"  # list of test photos; or two lists: query and gallery
    val_file = None  # images for validation, searched among themselves; None: the test set
    batch_size = 128  # training photos in a batch; a multiple of sample_per_id
    sample_per_id = 2  # photos of each class in a batch of 'random_id'
    test_batch_size = 256  # photos that are embedded at a time
    sampler = "random"  # 'random', 'random_id' or 'triplet'
    num_workers = 8  # processes that load photos; 0: the command itself
    pin_memory = True  # faster copies of batches to a GPU
    crop_size = 224  # side of the square that the network is given, in pixels
    decode = "exact"  # PIL's pixels; or 'fast': nearly the same, of JPEGs decoded at half their size or less
    image_cache = None  # folder that caches resized test images; SOP's test set takes 12 GB
    skip_unreadable = False  # True: replace an unreadable training photo by another of its class, and list it
    recalls = [1, 10, 100, 1000]  # each K of the R@K to report
    num_identities = _quotient(batch_size, sample_per_id)  # classes in a batch of 'random_id'
    # batches in an epoch of 'random_id'; None: images // batch_size
    num_iterations = _quotient(SOP_TRAINING_IMAGES, batch_size)
    train_cache_nn_inds = None  # neighbour file of the training images, for 'triplet'
    test_cache_nn_inds = None  # recorded only


@data_ingredient.named_config
def sop_global():
    """SOP as published, for the global descriptor."""
    name = "sop_global"
    batch_size = 800
    test_batch_size = 800
    sampler = "random_id"


@data_ingredient.named_config
def sop_rerank():
    """SOP as published, for reranking."""
    name = "sop_rerank"
    batch_size = 300
    test_batch_size = 600
    sampler = "triplet"
    recalls = [1, 10, 100]
    train_cache_nn_inds = "rrt_sop_caches/rrt_r50_sop_nn_inds_train.pkl"
    test_cache_nn_inds = "rrt_sop_caches/rrt_r50_sop_nn_inds_test.pkl"


@data_ingredient.named_config
def demo_global():
    """The drawn photos of `make demo`, for the global descriptor."""
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
    """The drawn photos of `make demo`, for reranking."""
    name = "demo_rerank"
    data_path = "data/demo"
    batch_size = 150
    test_batch_size = 100
    sampler = "triplet"
    crop_size = 96
    recalls = [1, 10, 100]


@data_ingredient.capture
def get_loaders(
    _config,
    training: bool = True,
    device: torch.device | None = None,
    timeout_minutes: float = 0,
    **given,
) -> tuple[Loaders, list[int]]:
    """Make the loaders, and return the Ks of recalls; inside a run settings that are not given are the config's,
    elsewhere the defaults.

    Without `training` there is no train loader, and its neighbour file is not read. The train loader is seeded with
    torch's initial seed. With `training`, the query loader has the images of `val_file` if that is set. Memory is
    pinned for a CUDA `device` only; None: if CUDA is available. Torch raises a RuntimeError after waiting for
    `timeout_minutes` for a batch of the workers; 0: never. The backbone tells the `resizing`, a `Resizing` of
    `sop.images.transforms`; the sampler 'triplet' draws `num_negatives` an anchor. InputError for settings that
    contradict each other, and for missing or malformed files.
    """
    configured = _config or config(fixed=given)
    settings = {part.name: configured[part.name] for part in fields(LoaderSettings) if part.name in configured}
    loader_settings = LoaderSettings(**settings | given)
    return make_loaders(loader_settings, training, device, timeout_minutes), list(loader_settings.recalls)


@data_ingredient.capture
def input_files(data_path, train_file, test_file, train_cache_nn_inds, val_file=None, training=False) -> list[Path]:
    """The files that `get_loaders` reads: split files and, with `training`, the neighbour file."""
    names = [train_file, *query_files(test_file, val_file, training)]
    caches = [Path(train_cache_nn_inds)] if training and train_cache_nn_inds else []
    return [Path(data_path) / name for name in names] + caches
