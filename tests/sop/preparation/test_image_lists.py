import pytest

from sop.preparation.archive import read_list
from sop.splits import Split, read_split, write_splits
from tests.faults import fill_disk, names
from tests.sop.preparation.test_archive import FILES, HEADER
from utils.errors import InputError


def test_a_list_becomes_a_split_file(tmp_path):
    (tmp_path / "Ebay_train.txt").write_text(FILES["Ebay_train.txt"].replace("\n", "\r\n"))
    split = read_list(tmp_path / "Ebay_train.txt")
    assert split == Split(["bicycle_final/a b.JPG", "bicycle_final/2.JPG", "chair_final/3,4.JPG"], [0, 0, 1])
    write_splits(tmp_path, {"train.txt": split})
    written = (tmp_path / "train.txt").read_bytes()
    assert written == b"bicycle_final/a b.JPG,0\nbicycle_final/2.JPG,0\nchair_final/3,4.JPG,1"
    assert read_split(tmp_path, "train.txt") == split


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEADER + "1 1 1 a.JPG\n2 1 1\n", "line 3: expected 'image_id class_id super_class_id path'.*found '2 1 1'"),
        (HEADER + "1 1 1 a.JPG\n\n2 1 1 b.JPG", "line 3: .*found ''"),
        (HEADER + "1 one 1 a.JPG\n", "line 2: .*found '1 one 1 a.JPG'"),
        (HEADER + "1 0 1 a.JPG\n", "line 2: expected .*class ids from 1, found '1 0 1 a.JPG'"),
        (HEADER + "1 -1 1 a.JPG\n", "line 2: "),
        (HEADER + "1 \u00b2 1 a.JPG\n", "line 2: "),
        (
            "1 1 1 a.JPG\n2 1 1 b.JPG\n",
            "line 1: expected the header 'image_id class_id super_class_id path', found '1 1",
        ),
        (HEADER + "1 \u0663 1 a.JPG\n", "line 2: "),
        (HEADER + "1 1" + 18 * "0" + " 1 a.JPG\n", "line 2: "),
        (HEADER + "1 1 1 " + "a" * 4200, "line 2: expected at most 4,200 bytes, found b'1 1 1 a+' and more"),
        (HEADER, "lists no images: unpack the archive again"),
        ("", "lists no images"),
    ],
)
def test_a_malformed_list(tmp_path, text, message):
    (tmp_path / "Ebay_train.txt").write_text(text)
    with pytest.raises(InputError, match=rf"Ebay_train.txt,? {message}"):
        read_list(tmp_path / "Ebay_train.txt")


def test_a_mark_at_the_beginning_and_strange_characters_in_a_name(tmp_path):
    (tmp_path / "Ebay_train.txt").write_text(HEADER + "1 01 1 a\u2028\x0b b.JPG \n", encoding="utf-8-sig")
    assert read_list(tmp_path / "Ebay_train.txt") == Split(["a\u2028\x0b b.JPG"], [0])


def test_a_missing_list(tmp_path):
    told = r"Ebay_train.txt does not exist: .* is not SOP's folder; choose another sop_dir"
    with pytest.raises(InputError, match=told):
        read_list(tmp_path / "Ebay_train.txt")


def test_a_full_disk_keeps_the_split_files_that_were_there(tmp_path, monkeypatch):
    (tmp_path / "train.txt").write_text("a,0")
    fill_disk(monkeypatch, ".test.txt.part", 2)
    with pytest.raises(InputError, match=r"test.txt could not be written: No space left"):
        write_splits(tmp_path, {"train.txt": Split(["b"], [0]), "test.txt": Split(["c", "d"], [0, 1])})
    assert names(tmp_path) == ["train.txt"] and (tmp_path / "train.txt").read_text() == "a,0"
