import zipfile
from pathlib import Path

import pytest

import sop.preparation.archive
from sop.preparation.archive import SOP_MD5, SOP_URL, is_safe, official_md5, unpack
from tests.faults import fill_disk, names
from utils.errors import InputError

HEADER = "image_id class_id super_class_id path\n"
FILES = {
    "Ebay_train.txt": HEADER + "1 1 1 bicycle_final/a b.JPG\n2 1 1 bicycle_final/2.JPG\n3 2 1 chair_final/3,4.JPG\n",
    "Ebay_test.txt": HEADER + "1 3 1 bicycle_final/4.JPG\n",
    **{f"bicycle_final/{name}.JPG": name * 1000 for name in ("a b", "2", "4")},
    "chair_final/3,4.JPG": "3",
}


@pytest.fixture
def archive(tmp_path) -> Path:
    return write_archive(tmp_path / "SOP.zip")


def write_archive(path: Path, more: dict[str, str] | None = None, top: str = "Stanford_Online_Products/") -> Path:
    """SOP's archive in small; `more` has further members by name."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as content:
        for name in ("", "bicycle_final/"):
            content.mkdir(top + name)
        for name, text in FILES.items():
            content.writestr(top + name, text)
        for name, text in (more or {}).items():
            content.writestr(name, text)
    return path


def contents(folder: Path) -> dict[str, str]:
    """Every file below a folder with its text, but for lock files."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".lock"))
    return {str(path.relative_to(folder)): path.read_text() for path in files}


def test_the_md5_is_known_for_the_official_addresses_only():
    assert (
        official_md5(SOP_URL) == official_md5("ftp://cs.stanford.edu/cs/cvgl/Stanford_Online_Products.zip") == SOP_MD5
    )
    assert official_md5("http://example.org/Stanford_Online_Products.zip") is None


def test_the_top_folder_becomes_the_folder_without_what_macos_adds(tmp_path):
    archive = write_archive(tmp_path / "SOP.zip", {"__MACOSX/Stanford_Online_Products/._2.JPG": "x"})
    unpack(archive, tmp_path / "data" / "sop")
    assert contents(tmp_path / "data") == {f"sop/{name}": text for name, text in FILES.items()}
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    unpack(archive, tmp_path / "link")
    assert contents(tmp_path / "real") == FILES and (tmp_path / "link").is_symlink()
    with pytest.raises(InputError, match=r"real is not empty: choose another folder, or move it away"):
        unpack(archive, tmp_path / "link")


TOP = "Stanford_Online_Products/"


@pytest.mark.parametrize(
    ("member", "message"),
    [
        ("../evil", r"was refused: its member '.*' would be written outside the folder"),
        (f"{TOP}a/../../../evil", r"was refused: its member '.*' would be written outside the folder"),
        ("/tmp/evil", r"was refused: its member '/tmp/evil' would be written outside the folder"),
        (f"{TOP}bicycle_final/2.JPG/3.JPG", r"could not be unpacked as .*sop: (File exists|Not a directory)"),
        ("other/x", r"is not SOP's: expected one top folder .* found 7 files.*'Stanford_Online_Products', 'other'"),
        (f"{TOP}large", r"was refused: it unpacks to \d+,\d+ bytes, expected at most 6,000; check where it comes from"),
    ],
)
def test_an_archive_is_refused(tmp_path, monkeypatch, member, message):
    monkeypatch.setattr(sop.preparation.archive, "MAX_UNPACKED", 6000)
    archive = write_archive(tmp_path / "SOP.zip", {member: "x" * (9000 if "large" in member else 1)})
    with pytest.raises(InputError, match=rf"SOP.zip {message}"):
        unpack(archive, tmp_path / "sop")
    assert names(tmp_path) == ["SOP.zip"]


def test_a_member_is_not_unpacked_beyond_the_size_it_declares(tmp_path):
    archive = write_archive(tmp_path / "SOP.zip", {TOP + "bomb": "0" * 100_000})
    content = archive.read_bytes()
    archive.write_bytes(content.replace((100_000).to_bytes(4, "little"), (10).to_bytes(4, "little")))
    with pytest.raises(InputError, match=r"SOP.zip is damaged \(Bad CRC-32"):
        unpack(archive, tmp_path / "sop")
    assert names(tmp_path) == ["SOP.zip"]


def damaged(content: bytes) -> dict[str, bytes]:
    start = content.index(b"bicycle_final/a b.JPG") + 25
    return {
        "truncated": content[:-100],
        "half": content[: len(content) // 2],
        "empty": b"",
        "a-page": b"<html>not found</html>",
        "flipped": content[:start] + bytes([content[start] ^ 0xFF]) + content[start + 1 :],
        "other-method": content.replace((8).to_bytes(2, "little"), (99).to_bytes(2, "little")),
        "no-text": content.replace("é".encode(), b"\xff\xff"),
    }


@pytest.mark.parametrize("kind", damaged(b"bicycle_final/a b.JPG" + b"." * 9))
def test_a_damaged_archive(tmp_path, kind):
    archive = write_archive(tmp_path / "SOP.zip", {TOP + "é": "x"})
    broken = damaged(archive.read_bytes())[kind]
    archive.write_bytes(broken)
    with pytest.raises(InputError, match=r"archive .*SOP.zip is damaged \(.+\): delete it and run the command again"):
        unpack(archive, tmp_path / "sop")
    assert names(tmp_path) == ["SOP.zip"] and archive.read_bytes() == broken


def test_a_full_disk(archive, tmp_path, monkeypatch):
    (tmp_path / "sop").mkdir()
    with monkeypatch.context() as patch:
        fill_disk(patch, "2.JPG", 10)
        with pytest.raises(InputError, match=r"could not be unpacked as .*sop: No space left.*the archive is kept"):
            unpack(archive, tmp_path / "sop")
    assert names(tmp_path) == ["SOP.zip", "sop"] and names(tmp_path / "sop") == []
    unpack(archive, tmp_path / "sop")
    assert contents(tmp_path / "sop") == FILES


def test_safe_names():
    assert all(map(is_safe, ("a", "a/b.JPG", "a b/c,d..JPG", "...")))
    assert not any(map(is_safe, ("", ".", "/", "..", "a/..")))
