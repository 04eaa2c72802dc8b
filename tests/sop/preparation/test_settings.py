"""Settings of prepare_data.py that make no sense are refused by name."""

import pytest

from prepare_data import ex
from sop.preparation.settings import RULES, check, check_split_files_differ
from utils.errors import InputError

DEFAULTS = {name: ex.run("print_config").config[name] for name in RULES}
PATH = "a path below the dataset's folder, or an absolute one, other than Ebay_train.txt and Ebay_test.txt"
NO_PATHS = [5, "", "../a.txt", "a/../b.txt", "/", "/a/..", "/a/Ebay_test.txt", ".", "a\0", "Ebay_train.txt"]
NAMED = "a folder's path that ends in the folder's name"


def test_every_setting_has_a_rule():
    assert ex.run("print_config").config.keys() - {"seed"} == RULES.keys()


@pytest.mark.parametrize(
    ("setting", "values", "allowed"),
    [
        ("sop_dir", [5, None, "", ".", "..", "/", "a/..", "a\0b", ["a"]], NAMED),
        ("demo_dir", [5, "", "."], NAMED),
        ("sop_url", [5, "", None, ["http://x"]], "an address"),
        ("sop_md5", [5, "", "x" * 32, "0" * 31], "32 hexadecimal digits, or None"),
        *((f"{name}_file", NO_PATHS, PATH) for name in ("train", "test", "val")),
        ("test_file", ["Ebay_test.txt", "./Ebay_test.txt", ["a.txt", "b.txt"], None], PATH),
        ("val_classes", ["x", -1, 1.0, True, None], "a whole number from 0"),
        ("demo_products", ["x", -1, 0, 1, 2.0, 10**7], "a whole number from 2 to 1,000,000"),
        ("demo_seed", ["x", -1, None], "a whole number from 0"),
        ("hub_repository", ["", "x", 5, "a/b/c", "a b/c"], "owner/name"),
        ("checkpoint_dir", ["", 5], "a folder's path"),
        ("neighbour_dir", ["", 5], "a folder's path"),
    ],
)
def test_what_makes_no_sense_is_refused(setting, values, allowed):
    for value in values:
        with pytest.raises(InputError) as raised:
            check(DEFAULTS | {setting: value})
        assert str(raised.value) == f"{setting}={value!r}: give {allowed}"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sop_dir": "../sop", "train_file": "lists/a b.txt", "sop_md5": None, "val_classes": 3, "demo_products": 2},
        {"checkpoint_dir": ".", "sop_dir": "/data/sop/", "sop_md5": "0" * 32, "train_file": "/lists/a.txt"},
    ],
)
def test_what_makes_sense_is_taken(changes):
    check(DEFAULTS | changes)


def test_each_split_has_a_file_of_its_own(tmp_path):
    check_split_files_differ(tmp_path, "a.txt", "b.txt", "c.txt", 1)
    check_split_files_differ(tmp_path, "a.txt", "b.txt", "b.txt", 0)
    check_split_files_differ(tmp_path, "/a.txt", "a.txt", "b.txt", 1)
    (tmp_path / "link").symlink_to(tmp_path)
    for files, told in {
        ("a.txt", "./a.txt", "c.txt"): "test_file='./a.txt' cannot be used: train_file is the same file",
        (
            f"{tmp_path}/a.txt",
            "link/a.txt",
            "c.txt",
        ): "test_file='link/a.txt' cannot be used: train_file is the same file",
        ("a.txt", "b.txt", "a.txt"): "val_file='a.txt' cannot be used: train_file is the same file",
        ("a.txt", "b.txt", "b.txt"): "val_file='b.txt' cannot be used: test_file is the same file",
    }.items():
        with pytest.raises(InputError, match=rf"^{told}, give each one of its own$"):
            check_split_files_differ(tmp_path, *files, 1)
