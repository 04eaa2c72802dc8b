import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from sop.dataset import Draw, ImageSet
from sop.samplers import RandomSampler
from sop.splits import Split, class_map, hold_out, read_split
from sop.transforms import train_transform
from utils.errors import InputError


def test_split_file(photos):
    split = read_split(photos, "test.txt")
    assert (split.paths[0], split.paths[-1], len(split.paths)) == ("toy_final/6_0.JPG", "toy_final/10_3.JPG", 20)
    assert split.classes == [number for number in range(6, 11) for _ in range(4)]


def test_commas_and_blanks_in_a_path(tmp_path):
    (tmp_path / "list.txt").write_text("a, b/c d.JPG,12")
    assert read_split(tmp_path, "list.txt") == (["a, b/c d.JPG"], [12])


@pytest.mark.parametrize("line", ["photo.JPG", "photo.JPG,", ",3", "photo.JPG,-1", "photo.JPG,x", ""])
def test_malformed_line_is_named(tmp_path, line):
    (tmp_path / "train.txt").write_text(f"a.JPG,0\n{line}\nb.JPG,1")
    with pytest.raises(InputError, match=r"train\.txt, line 2: expected 'path,class number', found"):
        read_split(tmp_path, "train.txt")


def test_missing_files_are_named(tmp_path):
    with pytest.raises(
        InputError, match=r"folder .*nowhere does not exist: run prepare_data\.py, or set dataset\.data_path"
    ):
        read_split(tmp_path / "nowhere", "train.txt")
    with pytest.raises(InputError, match=r"split file .*train\.txt does not exist"):
        read_split(tmp_path, "train.txt")
    (tmp_path / "train.txt").write_text("")
    with pytest.raises(InputError, match=r"split file .*train\.txt is empty"):
        read_split(tmp_path, "train.txt")


def test_one_map_for_the_classes_of_several_files(tmp_path):
    (tmp_path / "a.txt").write_text("x,7\ny,3")
    (tmp_path / "b.txt").write_text("z,5\nw,7")
    assert class_map(read_split(tmp_path, "a.txt"), read_split(tmp_path, "b.txt")) == {3: 0, 5: 1, 7: 2}


def image_set(photos, transform=None):
    split = read_split(photos, "train.txt")
    return ImageSet(photos, split, class_map(split), transform or train_transform(32))


def test_held_out_classes():
    split = Split(["a", "b", "c", "d", "e"], [7, 30, 4, 30, 8])
    assert hold_out(split, 2) == (Split(["a", "c"], [7, 4]), Split(["b", "d", "e"], [30, 30, 8]))
    for number in (-1, 4):
        with pytest.raises(InputError, match=rf"val_classes={number} of 4 training classes cannot be held out"):
            hold_out(split, number)


def test_an_item(photos):
    pixels, label, index = image_set(photos)[5]
    assert (pixels.shape, pixels.dtype, label, index) == ((3, 32, 32), torch.uint8, 1, 5)


def test_every_photo_becomes_rgb(tmp_path):
    Image.new("L", (40, 40), 80).save(tmp_path / "grey.JPG", "JPEG")
    (tmp_path / "train.txt").write_text("grey.JPG,0")
    pixels, _, _ = image_set(tmp_path)[0]
    assert pixels.unique().tolist() == [80]


def test_a_draw_follows_from_its_key_alone(photos):
    images = image_set(photos)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first, _, index = images[Draw(4, (0, 2, 9))]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(first, images[Draw(4, (0, 2, 9))][0])
    assert not torch.equal(first, images[Draw(4, (0, 2, 10))][0])
    assert index == 4


def test_the_same_pixels_with_any_number_of_workers(photos):
    images = image_set(photos)
    epochs = []
    for workers in (0, 2):
        sampler = RandomSampler(len(images), 8, seed=3)
        batches = list(DataLoader(images, batch_sampler=sampler, num_workers=workers))
        epochs.append(torch.cat([pixels for pixels, _, _ in batches]))
    assert torch.equal(*epochs)


def test_an_unreadable_photo_is_named(photos, tmp_path):
    whole = (photos / "toy_final/0_0.JPG").read_bytes()
    for name, content in {"cut": whole[:800], "text": b"no photo", "empty": b""}.items():
        (tmp_path / f"{name}.JPG").write_bytes(content)
        (tmp_path / "train.txt").write_text(f"{name}.JPG,0")
        with pytest.raises(InputError, match=rf"photo .*{name}\.JPG cannot be read .*: replace it"):
            image_set(tmp_path)[0]
    (tmp_path / "train.txt").write_text("gone.JPG,0")
    with pytest.raises(InputError, match=r"photo .*gone\.JPG does not exist"):
        image_set(tmp_path)[0]
