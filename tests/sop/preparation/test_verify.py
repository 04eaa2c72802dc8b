import shutil

import pytest

from sop.preparation.verify import verify_images
from sop.splits import read_split
from utils.errors import InputError


@pytest.fixture
def paths(folder) -> list[str]:
    """44 photos, of which the last class has 4 identical ones."""
    return [path for name in ("train.txt", "test.txt") for path in read_split(folder, name).paths]


def test_good_images_are_counted(folder, paths, capsys):
    shutil.copy(folder / paths[0], folder / paths[1])
    verify_images(folder, paths + paths[:3])  # one named twice is one image
    printed = capsys.readouterr()
    assert printed.out == "44 images, 2 groups of identical files (6 files)\n"
    assert "Verifying: 100%" in printed.err and "44/44" in printed.err


def test_each_missing_or_unreadable_image_is_listed(folder, paths, capsys):
    missing, cut, empty, text, directory, *_ = paths
    (folder / missing).unlink()
    (folder / cut).write_bytes((folder / cut).read_bytes()[:-500])  # its header is whole
    (folder / empty).write_bytes(b"")
    (folder / text).write_text("<html>not found</html>")
    (folder / directory).unlink()
    (folder / directory).mkdir()
    with pytest.raises(InputError) as raised:
        verify_images(folder, paths)
    assert str(raised.value) == (
        f"{folder}: of 44 images 1 are missing and 4 unreadable (listed above): "
        "move the folder away and run prepare_data.py to unpack it again"
    )
    printed = capsys.readouterr().out
    assert f"photo {folder / missing} does not exist: " in printed
    assert f"photo {folder / cut} cannot be read (image file is truncated" in printed
    assert f"photo {folder / empty} cannot be read (cannot identify image file" in printed
    assert f"photo {folder / text} cannot be read (cannot identify image file" in printed
    assert f"photo {folder / directory} is a folder, a pipe or a device: " in printed
    assert printed.count("photo /") == 5 and "44 images, 1 groups of identical files (4 files)\n" in printed
