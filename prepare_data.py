"""Fetch Stanford Online Products, unpack it and write the split files; fetch the published files; verify the images."""

from contextlib import ExitStack
from pathlib import Path

from sacred import Experiment

from sop.demo.photos import draw_demo
from sop.preparation.archive import SOP_URL, TEST_LIST, TRAIN_LIST, official_md5, read_list, unpack
from sop.preparation.atomic_folder import BUSY_ADVICE, is_empty_or_missing
from sop.preparation.download import download
from sop.preparation.published import CHECKPOINTS, HUB_REPOSITORY, NEIGHBOURS, evaluation_commands, fetch_published
from sop.preparation.settings import check, check_split_files_differ
from sop.preparation.verify import verify_images
from sop.splits import hold_out, read_split, write_splits
from utils.experiment.sacred_setup import reports_errors, set_up
from utils.io.lock import exclusive_lock
from utils.settings import check_settings, whole_number

ex = set_up(Experiment("Prepare SOP"), is_distributed=False)


def make_splits(folder: Path, train_file: str, test_file: str, val_file: str, val_classes: int) -> None:
    """Write the split files; none is written if a list is malformed."""
    splits = {train_file: read_list(folder / TRAIN_LIST), test_file: read_list(folder / TEST_LIST)}
    if val_classes:
        splits[train_file], splits[val_file] = hold_out(splits[train_file], val_classes)
    with ExitStack() as locks:
        for parent in sorted({(folder / file_name).parent for file_name in splits}):  # the dataset's may be read-only
            locks.enter_context(exclusive_lock(parent / ".lock", f"the set of split files in {parent}", BUSY_ADVICE))
        write_splits(folder, splits)
    for file_name, split in splits.items():
        print(f"{folder / file_name}: {len(split.paths)} images")


@ex.config
def config():
    sop_dir = "data/Stanford_Online_Products"  # the archive is kept in its parent folder
    sop_url = SOP_URL  # http, https or file
    sop_md5 = official_md5(sop_url)  # None: not checked
    train_file = "train.txt"  # list of training photos to write: below sop_dir, or an absolute path
    test_file = "test.txt"  # list of test photos, likewise
    val_file = "val.txt"  # list of held-out photos, likewise; written if val_classes is not 0
    val_classes = 0  # training classes to hold out, for dataset.val_file
    hub_repository = HUB_REPOSITORY  # the published files
    checkpoint_dir = "rrt_sop_ckpts"  # where the published checkpoints are written
    neighbour_dir = "rrt_sop_caches"  # where the published neighbour files are written
    demo_dir = "data/demo"  # where the demo set is drawn
    demo_products = 600  # of the demo set, half of them for training
    demo_seed = 0  # another one draws another demo set


@ex.command
@reports_errors
def checkpoints(_config, hub_repository, checkpoint_dir, neighbour_dir):
    """Fetch the published checkpoints."""
    check(_config)
    fetch_published(CHECKPOINTS, hub_repository, Path(checkpoint_dir))
    print("evaluate with", *evaluation_commands(CHECKPOINTS, checkpoint_dir, neighbour_dir), sep="\n  ")


@ex.command
@reports_errors
def neighbours(_config, hub_repository, checkpoint_dir, neighbour_dir):
    """Fetch the published neighbour files."""
    check(_config)
    fetch_published(NEIGHBOURS, hub_repository, Path(neighbour_dir))
    print("evaluate with", *evaluation_commands(NEIGHBOURS, checkpoint_dir, neighbour_dir), sep="\n  ")


@ex.command
@reports_errors
def verify(_config, sop_dir, train_file, test_file):
    """Open every image that the split files name."""
    check(_config)
    folder = Path(sop_dir)
    verify_images(folder, [path for name in (train_file, test_file) for path in read_split(folder, name).paths])


@ex.command
@reports_errors
def demo(_config, demo_dir, demo_products, demo_seed, train_file, test_file, val_file, val_classes):
    """Draw a small demo set in SOP's layout."""
    check(_config)
    check_settings({"val_classes": val_classes}, {"val_classes": whole_number(0, demo_products // 2 - 1)})
    check_split_files_differ(Path(demo_dir), train_file, test_file, val_file, val_classes)
    draw_demo(Path(demo_dir), demo_products, seed=demo_seed)
    make_splits(Path(demo_dir), train_file, test_file, val_file, val_classes)


@ex.automain
@reports_errors
def main(_config, sop_dir, sop_url, sop_md5, train_file, test_file, val_file, val_classes):
    """Fetch SOP, unpack it and write the split files."""
    check(_config)
    folder = Path(sop_dir)
    check_split_files_differ(folder, train_file, test_file, val_file, val_classes)
    if is_empty_or_missing(folder):
        unpack(download(sop_url, folder.parent, sop_md5), folder)
    make_splits(folder, train_file, test_file, val_file, val_classes)
