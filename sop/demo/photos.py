"""A small set of drawn photos in SOP's layout, to try every command in minutes and without a download."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

from tqdm import tqdm

from sop.demo.drawing import DIFFICULTY, Album, draw_photos
from sop.demo.shapes import SHAPES, family
from sop.preparation.archive import TEST_LIST, TRAIN_LIST
from sop.preparation.atomic_folder import atomic_folder, is_empty_or_missing
from utils.errors import InputError

SETTINGS_FILE = "demo.json"
MINIMUM = {"num_products": 2, "views": 2, "seed": 0, "size": 32}
MAX_PROCESSES = 8  # each starts its own interpreter


def draw_demo(
    folder: Path, num_products: int = 800, views: int = 6, seed: int = 0, size: int = 128, processes: int | None = None
) -> None:
    """Draw a demo set in `folder`, completely or not at all: photos of size x size pixels, and SOP's two lists of them.

    Each product has `views` photos; the first half of the products are for training, the others for testing. The photos
    do not depend on the number of processes (by default one a core). An existing set of the same settings is kept; an
    interrupted call is started over. InputError for settings that are too small, for a folder that holds anything else,
    while another process draws it, and for errors of the operating system.
    """
    settings = {"num_products": num_products, "views": views, "seed": seed, "size": size}
    for name, minimum in MINIMUM.items():
        if settings[name] < minimum:
            raise InputError(f"{name}={settings[name]} makes no demo set: the least is {minimum}")
    if not is_empty_or_missing(folder):
        _check_same(folder, settings)
        print(f"{folder}: the demo set is there already and is kept")
        return
    folder = folder.resolve()
    try:
        with atomic_folder(
            folder, "drawing", num_files=num_products * views + 3
        ) as hidden:  # two lists and the settings
            for shape in SHAPES:
                (hidden / _super_class(shape)).mkdir()
            albums = [
                Album([hidden / path for path in photo_paths(product, views)], seed, product, size)
                for product in range(num_products)
            ]
            with _parallel(processes or min(MAX_PROCESSES, os.cpu_count() or 1)) as mapped:
                for _ in tqdm(mapped(draw_photos, albums), f"Drawing {folder.name}", num_products, unit="product"):
                    pass
            _write_lists(hidden, num_products, views)
            (hidden / SETTINGS_FILE).write_text(json.dumps(_recorded(settings), indent=1))
    except OSError as error:
        raise InputError(f"the demo set {folder} could not be written: {error.strerror or error}") from error


def photo_paths(product: int, views: int) -> list[str]:
    """The photos of a product, below the set's folder."""
    return [f"{_super_class(family(product)[0])}/{product + 1:012d}_{view}.JPG" for view in range(views)]


def read_settings(folder: Path) -> dict:
    """The settings of the demo set in a folder; InputError if there is none."""
    try:
        settings = json.loads((folder / SETTINGS_FILE).read_text())
        if not isinstance(settings, dict):
            raise ValueError(f"{SETTINGS_FILE} holds no settings")
        return settings
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} holds no demo set: choose another folder for it") from error


def _super_class(shape: str) -> str:
    """The folder of a shape's photos."""
    return f"{shape}_final"


def _write_lists(folder: Path, num_products: int, views: int) -> None:
    """SOP's list of each split: a header, then `image_id class_id super_class_id path`, all ids from 1."""
    half, super_classes = num_products // 2, list(SHAPES)
    for name, products in ((TRAIN_LIST, range(half)), (TEST_LIST, range(half, num_products))):
        lines = ["image_id class_id super_class_id path"]
        for product in products:
            super_class = super_classes.index(family(product)[0]) + 1
            for view, path in enumerate(photo_paths(product, views)):
                lines.append(f"{product * views + view + 1} {product + 1} {super_class} {path}")
        (folder / name).write_text("\n".join(lines) + "\n")


def _recorded(settings: dict) -> dict:
    """The content of the settings file: settings and difficulty."""
    return json.loads(json.dumps(settings | DIFFICULTY._asdict()))


def _check_same(folder: Path, settings: dict) -> None:
    """Raise InputError unless the folder holds a demo set of these settings."""
    found, wanted = read_settings(folder), _recorded(settings)
    differing = [name for name in wanted if found.get(name) != wanted[name]]
    if differing:
        raise InputError(
            f"{folder} holds a demo set drawn with {', '.join(f'{name}={found.get(name)}' for name in differing)}, not "
            f"{', '.join(f'{name}={wanted[name]}' for name in differing)}: delete it, or choose another folder"
        )


@contextmanager
def _parallel(processes: int) -> Iterator[Callable]:
    """A `map` over some processes, with results in any order; a single process is this one."""
    if processes == 1:
        yield map
        return
    with get_context("spawn").Pool(processes) as pool:
        yield pool.imap_unordered
