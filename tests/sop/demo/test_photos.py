import json
from collections import defaultdict

import pytest
from PIL import Image

from sop.demo import photos
from sop.demo.photos import draw_demo
from sop.demo.shapes import COLOURWAYS, SHAPES, family
from sop.preparation.archive import TEST_LIST, TRAIN_LIST, read_list
from tests.faults import names
from utils.errors import InputError

SMALL = {"num_products": 9, "views": 3, "seed": 5, "size": 48, "processes": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A drawn set of 4 training and 5 test products, 3 photos each."""
    folder = tmp_path_factory.mktemp("demo") / "sop"
    draw_demo(folder, **SMALL)
    return folder


def contents(folder):
    """Every file's bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_lists_are_laid_out_like_sops(folder):
    rows = {}
    for name in (TRAIN_LIST, TEST_LIST):
        header, *lines = (folder / name).read_text().splitlines()
        assert header == "image_id class_id super_class_id path"
        rows[name] = [line.split() for line in lines]
    train, test = rows[TRAIN_LIST], rows[TEST_LIST]
    assert train[4] == ["5", "2", "2", "bottle_final/000000000002_1.JPG"]
    assert [int(row[0]) for row in train + test] == list(range(1, 28))
    assert [int(row[1]) for row in train] == [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]
    assert [int(row[1]) for row in test] == [number for number in (5, 6, 7, 8, 9) for _ in range(3)]
    super_classes = defaultdict(set)
    for _, _, number, path in train + test:
        super_classes[number].add(path.split("/")[0])
    assert super_classes == {"1": {"bag_final"}, "2": {"bottle_final"}, "3": {"box_final"}, "4": {"mug_final"}}


def test_every_photo_is_listed_once_and_is_a_jpeg_of_the_asked_size(folder):
    listed = read_list(folder / TRAIN_LIST).paths + read_list(folder / TEST_LIST).paths
    assert sorted(listed) == sorted(name for name in contents(folder) if name.endswith(".JPG"))
    for path in listed:
        with Image.open(folder / path) as photo:
            photo.load()
            assert (photo.format, photo.mode, photo.size) == ("JPEG", "RGB", (48, 48))
    assert len({(folder / path).read_bytes() for path in listed}) == 27


def test_families_share_shape_and_colours_and_are_spread_evenly():
    members = defaultdict(list)
    for product in range(800):
        members[family(product)].append(product)
    assert len(members) == len(SHAPES) * len(COLOURWAYS)
    assert {sum(product >= 400 for product in products) for products in members.values()} == {25}


def test_the_settings_give_the_set_whatever_the_number_of_processes(folder, tmp_path):
    draw_demo(tmp_path / "two", **SMALL | {"processes": 2})
    assert contents(tmp_path / "two") == contents(folder)
    draw_demo(tmp_path / "other", **SMALL | {"seed": 6})
    same = contents(tmp_path / "other").items() & contents(folder).items()
    assert {name for name, _ in same} == {TRAIN_LIST, TEST_LIST}


def test_a_photo_does_not_depend_on_how_many_others_there_are(folder, tmp_path):
    draw_demo(tmp_path / "less", **SMALL | {"num_products": 2, "views": 2})
    photos = {name: data for name, data in contents(tmp_path / "less").items() if name.endswith(".JPG")}
    assert len(photos) == 4
    assert photos.items() <= contents(folder).items()


def test_a_set_of_the_same_settings_is_kept(folder, capsys):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    draw_demo(folder, **SMALL)
    assert capsys.readouterr().out == f"{folder}: the demo set is there already and is kept\n"
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_set_of_other_settings_or_difficulty_is_an_error_that_names_them(folder, monkeypatch):
    with pytest.raises(InputError, match=r"drawn with views=3, seed=5, not views=4, seed=0: delete it"):
        draw_demo(folder, **SMALL | {"views": 4, "seed": 0})
    monkeypatch.setattr(photos, "DIFFICULTY", photos.DIFFICULTY._replace(prints=(1, 2)))
    with pytest.raises(InputError, match=r"drawn with prints=\[3, 4\], not prints=\[1, 2\]"):
        draw_demo(folder, **SMALL)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="holds no demo set: choose another folder"):
        draw_demo(tmp_path, **SMALL)
    assert contents(tmp_path) == {"notes.txt": b"mine"}
    for settings in (b"[1]", b"{", b"\xff"):
        (tmp_path / "demo.json").write_bytes(settings)
        with pytest.raises(InputError, match="holds no demo set: choose another folder"):
            draw_demo(tmp_path, **SMALL)


@pytest.mark.parametrize(("name", "value"), [("num_products", 1), ("views", 1), ("seed", -1), ("size", 8)])
def test_settings_that_make_no_set_are_refused(tmp_path, name, value):
    with pytest.raises(
        InputError, match=rf"{name}={value} makes no demo set: the least is {value + 1 if value < 8 else 32}"
    ):
        draw_demo(tmp_path / "sop", **SMALL | {name: value})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interrupted_drawing_leaves_nothing(tmp_path, monkeypatch, error):
    def interrupted(*_):
        raise error

    monkeypatch.setattr(photos, "_write_lists", interrupted)
    with pytest.raises((KeyboardInterrupt, InputError), match=r"^$|could not be written: No space left"):
        draw_demo(tmp_path / "sop", **SMALL)
    assert names(tmp_path) == []


def test_the_settings_stand_in_the_set(folder):
    settings = json.loads((folder / "demo.json").read_text())
    assert {name: settings[name] for name in SMALL if name != "processes"} | {"processes": 1} == SMALL
