"""Fetch Stanford Online Products, unpack it and write the split files; fetch the published files; verify the images."""

from pathlib import Path

from sacred import Experiment

from sop.demo.photos import draw_demo
from sop.preparation.archive import SOP_URL, TEST_LIST, TRAIN_LIST, is_free, official_md5, read_list, unpack
from sop.preparation.download import download
from sop.preparation.published import CHECKPOINTS, NEIGHBOURS, evaluation_commands, fetch
from sop.preparation.verify import verify_images
from sop.splits import hold_out, read_split, write_split
from utils.experiment import reports_errors, set_up

ex = set_up(Experiment("Prepare SOP"))


def write_splits(folder: Path, train_file: str, test_file: str, val_file: str, val_classes: int) -> None:
    """Write the split files, once both lists have proved well-formed."""
    splits = {train_file: read_list(folder / TRAIN_LIST), test_file: read_list(folder / TEST_LIST)}
    if val_classes:
        splits[train_file], splits[val_file] = hold_out(splits[train_file], val_classes)
    for file_name, split in splits.items():
        write_split(folder / file_name, split)
        print(f"{folder / file_name}: {len(split.paths)} images")


@ex.config
def config():
    sop_dir = "data/Stanford_Online_Products"  # the archive is kept in its parent folder
    sop_url = SOP_URL  # http, https or file
    sop_md5 = official_md5(sop_url)  # None: not checked
    train_file = "train.txt"
    test_file = "test.txt"
    val_file = "val.txt"  # written where there are val_classes
    val_classes = 0  # training classes to hold out, for dataset.val_file
    hub_repository = "fwtan/rrt_sop_data"  # the published files
    checkpoint_dir = "rrt_sop_ckpts"
    neighbour_dir = "rrt_sop_caches"
    demo_dir = "data/demo"
    demo_products = 600  # half of them for training
    demo_seed = 0


@ex.command
@reports_errors
def checkpoints(hub_repository, checkpoint_dir, neighbour_dir):
    """Fetch the published checkpoints."""
    fetch(CHECKPOINTS, hub_repository, Path(checkpoint_dir))
    print("evaluate with", *evaluation_commands(CHECKPOINTS, checkpoint_dir, neighbour_dir), sep="\n  ")


@ex.command
@reports_errors
def neighbours(hub_repository, checkpoint_dir, neighbour_dir):
    """Fetch the published neighbour files."""
    fetch(NEIGHBOURS, hub_repository, Path(neighbour_dir))
    print("evaluate with", *evaluation_commands(NEIGHBOURS, checkpoint_dir, neighbour_dir), sep="\n  ")


@ex.command
@reports_errors
def verify(sop_dir, train_file, test_file):
    """Open every image that the split files name."""
    folder = Path(sop_dir)
    verify_images(folder, [path for name in (train_file, test_file) for path in read_split(folder, name).paths])


@ex.command
@reports_errors
def demo(demo_dir, demo_products, demo_seed, train_file, test_file, val_file, val_classes):
    """Draw a small demo set in SOP's layout."""
    draw_demo(Path(demo_dir), demo_products, seed=demo_seed)
    write_splits(Path(demo_dir), train_file, test_file, val_file, val_classes)


@ex.automain
@reports_errors
def main(sop_dir, sop_url, sop_md5, train_file, test_file, val_file, val_classes):
    """Fetch SOP, unpack it and write the split files."""
    folder = Path(sop_dir)
    if is_free(folder):
        unpack(download(sop_url, folder.parent, sop_md5), folder)
    write_splits(folder, train_file, test_file, val_file, val_classes)
