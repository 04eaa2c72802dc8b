"""Split files as people and programs write them."""

import codecs
import os

import pytest

from sop.splits import Split, class_map, hold_out, read_split, repeats
from tests.test_ingredient import loaders_of
from utils.errors import InputError


def test_split_file(photos):
    split = read_split(photos, "test.txt")
    assert (split.paths[0], split.paths[-1], len(split.paths)) == ("toy_final/6_0.JPG", "toy_final/10_3.JPG", 20)
    assert split.classes == [number for number in range(6, 11) for _ in range(4)]


@pytest.mark.parametrize(
    ("content", "paths", "classes"),
    [
        (b"a, b/c d.JPG,12", ["a, b/c d.JPG"], [12]),
        (b"a.JPG, 1 \nb.JPG,\t2", ["a.JPG", "b.JPG"], [1, 2]),
        (codecs.BOM_UTF8 + b"a.JPG,1\nb.JPG,2\n", ["a.JPG", "b.JPG"], [1, 2]),
        (b"a.JPG,1\r\nb.JPG,2\r\n", ["a.JPG", "b.JPG"], [1, 2]),
        (b"a.JPG,1\rb.JPG,2", ["a.JPG", "b.JPG"], [1, 2]),
        ("é\u2028\x0b\x0c\x1c\x85.JPG,1\nb,2".encode(), ["é\u2028\x0b\x0c\x1c\x85.JPG", "b"], [1, 2]),
        (b"/data/a.JPG,1\n../b.JPG,2", ["/data/a.JPG", "../b.JPG"], [1, 2]),
        (b"a.JPG,007\nb.JPG," + b"9" * 18, ["a.JPG", "b.JPG"], [7, 10**18 - 1]),
        (b"x" * 4095 + b",1", ["x" * 4095], [1]),
    ],
    ids=["comma", "blanks", "mark", "windows", "old-mac", "separators", "outside", "digits", "long"],
)
def test_accepted_lines(tmp_path, content, paths, classes):
    (tmp_path / "list.txt").write_bytes(content)
    assert read_split(tmp_path, "list.txt") == (paths, classes)


@pytest.mark.parametrize(
    "line", ["b", "b,", ",3", "b,-1", "b,+1", "b,x", "", "b,1.0", "b,1e3", "b,²", "b,٣", "b,1_0", "b," + "1" * 19]
)
def test_a_malformed_line_is_named(tmp_path, line):
    (tmp_path / "train.txt").write_text(f"a.JPG,0\n{line}\nb.JPG,1")
    with pytest.raises(InputError) as raised:
        read_split(tmp_path, "train.txt")
    expected = "'path,class number' with at most 18 digits"
    assert str(raised.value) == f"{tmp_path}/train.txt, line 2: expected {expected}, found {line!r}"


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (b"b,\0", r"expected UTF-8 text, found b'b,\\x00'"),
        (b"\xff,1", r"expected UTF-8 text, found b'\\xff,1'"),
        ("b,1".encode("utf-16"), r"expected UTF-8 text, found b'\\xff\\xfeb\\x00,\\x001\\x00'"),
        (b"b," + b"1" * 5000, r"expected at most 4,200 bytes, found b'b,1{98}' and more"),
        (b"b," + b"1" * 200, r"expected 'path,class number' .*, found 'b,1{98}' and more"),
    ],
    ids=["null", "latin-1", "utf-16", "huge", "long"],
)
def test_binary_or_long_line_is_named(tmp_path, line, found):
    (tmp_path / "train.txt").write_bytes(b"a.JPG,0\r\n" + line + b"\nb.JPG,1")
    with pytest.raises(InputError, match=rf"train\.txt, line 2: {found}$"):
        read_split(tmp_path, "train.txt")


def test_what_is_no_list_is_named(tmp_path):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to("loop")
    no_file = "is a folder, a pipe or a device, not a list: run prepare_data"
    for folder, name, told in [
        ("none", "x", r"folder .*none does not exist: run prepare_data\.py, or set dataset\.data_path"),
        (".", "none", r"none does not exist: run prepare_data\.py, or set dataset\.train_file"),
        (".", "empty.txt", r"split file .*empty\.txt is empty"),
        *((".", name, f"{name} {no_file}") for name in ("folder", "pipe", "device")),
        (".", "loop", r"loop cannot be read \(Too many levels of symbolic links\): run prepare_data"),
    ]:
        with pytest.raises(InputError, match=told):
            read_split(tmp_path / folder, name)


def test_class_map_of_several_files(tmp_path):
    (tmp_path / "a.txt").write_text("x,7\ny,3")
    (tmp_path / "b.txt").write_text("z,5\nw,7")
    assert class_map(read_split(tmp_path, "a.txt"), read_split(tmp_path, "b.txt")) == {3: 0, 5: 1, 7: 2}


def test_held_out_classes():
    split = Split(["a", "b", "c", "d", "e"], [7, 30, 4, 30, 8])
    assert hold_out(split, 2) == (Split(["a", "c"], [7, 4]), Split(["b", "d", "e"], [30, 30, 8]))
    for number in (-1, 4):
        with pytest.raises(InputError, match=rf"val_classes={number} of 4 training classes cannot be held out"):
            hold_out(split, number)


ONCE = "q.txt", Split(["a", "b", "c"], [0, 0, 1])


@pytest.mark.parametrize(
    ("lists", "lines"),
    [
        ([ONCE], []),
        ([ONCE, ("g.txt", Split(["d", "e"], [0, 1]))], []),
        ([("q.txt", Split(["a", "b", "a", "a", "./b", "c"], [0] * 6))], ["q.txt: 2 photos are listed more than once"]),
        ([ONCE, ("g.txt", Split(["d/../c"], [1]))], ["1 photo is in both q.txt and g.txt: they find themselves"]),
        ([ONCE, ONCE], ["q.txt is both query and gallery: its photos find themselves"]),
        (
            [("q.txt", Split(["a", "b", "b"], [0, 0, 1]))],
            ["q.txt: 1 photo is listed more than once", "q.txt: 1 photo is listed with different classes, b for one"],
        ),
        (
            [ONCE, ("g.txt", Split(["c", "b"], [2, 3]))],
            [
                "2 photos are in both q.txt and g.txt: they find themselves",
                "q.txt and g.txt: 2 photos are listed with different classes, b for one",
            ],
        ),
    ],
    ids=["once", "apart", "twice", "in-both", "same-list", "two-classes", "two-classes-in-two"],
)
def test_repeated_photos(lists, lines):
    assert list(repeats(*lists)) == lines


def test_loaders_print_repeated_photos(folder, capsys):
    lines = (folder / "test.txt").read_text().splitlines()
    (folder / "query.txt").write_text("\n".join(lines[:5] + lines[:2]))
    (folder / "gallery.txt").write_text("\n".join(lines[4:]))
    loaders_of(folder)
    assert capsys.readouterr().out == ""
    loaders_of(folder, test_file=["query.txt", "gallery.txt"])
    assert capsys.readouterr().out == (
        "query.txt: 2 photos are listed more than once\n"
        "1 photo is in both query.txt and gallery.txt: they find themselves\n"
    )
    loaders_of(folder, train_file="query.txt", test_file=["test.txt", "test.txt"])
    assert capsys.readouterr().out == (
        "query.txt: 2 photos are listed more than once\n"
        "test.txt is both query and gallery: its photos find themselves\n"
    )
