"""Rules for the settings of prepare_data.py."""

import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from sop.preparation.archive import TEST_LIST, TRAIN_LIST, is_safe
from utils.errors import InputError
from utils.settings import TEXT, Rule, check_settings, whole_number


def _has_name(value: object) -> bool:
    return TEXT.accepts(value) and Path(str(value)).name not in ("", "..")


def _is_split_file(value: object) -> bool:
    path = PurePosixPath(str(value))
    is_path = TEXT.accepts(value) and (is_safe(str(value)) or path.is_absolute())
    return is_path and path.name not in ("", "..", TRAIN_LIST, TEST_LIST)


def _matching(form: str, allowed: str) -> Rule:
    """Text that matches the regular expression `form`."""
    return Rule(allowed, lambda value: isinstance(value, str) and bool(re.fullmatch(form, value)))


ADDRESS = Rule("an address", TEXT.accepts)
FOLDER = Rule("a folder's path", TEXT.accepts)
NEW_FOLDER = Rule("a folder's path that ends in the folder's name", _has_name)
SPLIT_FILE = Rule(
    f"a path below the dataset's folder, or an absolute one, other than {TRAIN_LIST} and {TEST_LIST}", _is_split_file
)
RULES = {
    "sop_dir": NEW_FOLDER,
    "sop_url": ADDRESS,
    "sop_md5": _matching("[0-9a-fA-F]{32}", "32 hexadecimal digits").or_none(),
    "train_file": SPLIT_FILE,
    "test_file": SPLIT_FILE,
    "val_file": SPLIT_FILE,
    "val_classes": whole_number(0),
    "hub_repository": _matching(r"[\w.-]+/[\w.-]+", "owner/name"),
    "checkpoint_dir": FOLDER,
    "neighbour_dir": FOLDER,
    "demo_dir": NEW_FOLDER,
    "demo_products": whole_number(2, 1_000_000),
    "demo_seed": whole_number(0),
}


def check(config: Mapping[str, object]) -> None:
    """Raise InputError for the first setting that cannot be used."""
    check_settings(config, RULES)


def check_split_files_differ(folder: Path, train_file: str, test_file: str, val_file: str, val_classes: int) -> None:
    """Raise InputError if two of the split files to be written for the dataset in `folder` are the same file."""
    files = {"train_file": train_file, "test_file": test_file} | ({"val_file": val_file} if val_classes else {})
    setting_of: dict[str, str] = {}
    for name, file in files.items():
        other = setting_of.setdefault(os.path.realpath(folder / file), name)
        if other != name:
            raise InputError(f"{name}={file!r} cannot be used: {other} is the same file, give each one of its own")
