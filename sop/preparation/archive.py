"""SOP's archive: where it is, how it is unpacked, and the lists of images in it."""

import lzma
import re
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from sop.lists import malformed, numbered_lines
from sop.preparation.atomic_folder import atomic_folder
from sop.splits import Split
from utils.errors import InputError

SOP_URL = "http://ftp.cs.stanford.edu/cs/cvgl/Stanford_Online_Products.zip"
SOP_MD5 = "7f73d41a2f44250d4779881525aea32e"
OFFICIAL_URLS = (
    SOP_URL,
    SOP_URL.replace("http:", "https:"),
    "ftp://cs.stanford.edu/cs/cvgl/Stanford_Online_Products.zip",
)
TRAIN_LIST, TEST_LIST = "Ebay_train.txt", "Ebay_test.txt"
MAX_UNPACKED = 16 << 30  # bytes; SOP has 3 GB
IMAGE = re.compile(r"[ \t]*\S+[ \t]+0*([1-9][0-9]{,17})[ \t]+\S+[ \t]+(.*[^ \t])[ \t]*")  # a line of a list
DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, UnicodeDecodeError, RuntimeError)

Members = dict[PurePosixPath, zipfile.ZipInfo]


def official_md5(url: str) -> str | None:
    """The MD5 of the archive at an official address, None for any other."""
    return SOP_MD5 if url in OFFICIAL_URLS else None


def unpack(archive: Path, folder: Path) -> None:
    """Unpack the single top folder of SOP's archive as `folder`, completely or not at all.

    An interrupted call is started over. InputError for an archive that is refused, damaged or not SOP's, while another
    process makes `folder`, and for errors of the operating system; `folder` and the archive are left as they were.
    """
    folder = folder.resolve()
    try:
        with open_archive(archive) as (content, members):
            files = _below_top(members, archive)
            with atomic_folder(folder, "unpacking", len(files)) as hidden:
                for path, member in tqdm(files.items(), desc=f"Unpacking {archive.name}", unit="file"):
                    target = hidden / path
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with content.open(member) as source, target.open("xb") as file:
                        shutil.copyfileobj(source, file)
    except OSError as error:
        raise InputError(
            f"{archive} could not be unpacked as {folder}: {error.strerror or error}; the archive is kept, "
            "run the command again"
        ) from error


@contextmanager
def open_archive(archive: Path) -> Iterator[tuple[zipfile.ZipFile, Members]]:
    """A zip archive and its files by their paths, which stay in the folder that it is unpacked to.

    InputError for a path that does not, for an archive larger than a dataset, and for a damaged one; damage may also
    show while the block reads.
    """
    try:
        with zipfile.ZipFile(archive) as content:
            yield content, _safe_members(content, archive)
    except DAMAGED as error:
        raise InputError(f"archive {archive} is damaged ({error}): delete it and run the command again") from error


def is_safe(name: str) -> bool:
    """Whether a path given by others names something below the folder that it is joined to."""
    path = PurePosixPath(name)
    return len(path.parts) > 0 and not path.is_absolute() and ".." not in path.parts


def _safe_members(content: zipfile.ZipFile, archive: Path) -> Members:
    # is_dir() of ZipInfo fails for an empty name
    files = [file for file in content.infolist() if not file.filename.endswith("/")]
    files = [file for file in files if not file.filename.startswith("__MACOSX/")]
    size = sum(file.file_size for file in files)  # reading a member stops at the size it declares
    if size > MAX_UNPACKED:
        raise InputError(
            f"archive {archive} was refused: it unpacks to {size:,} bytes, expected at most {MAX_UNPACKED:,}; check "
            "where it comes from"
        )
    for file in files:
        if not is_safe(file.filename):
            raise InputError(
                f"archive {archive} was refused: its member {file.filename!r} would be written outside the folder; "
                "check where it comes from"
            )
    return {PurePosixPath(file.filename): file for file in files}


def _below_top(members: Members, archive: Path) -> Members:
    """The files of SOP's archive by their paths below its single top folder."""
    tops = {path.parts[0] for path in members}
    below_top = {path.relative_to(path.parts[0]): member for path, member in members.items()}
    if len(tops) != 1 or not {PurePosixPath(TRAIN_LIST), PurePosixPath(TEST_LIST)} <= below_top.keys():
        raise InputError(
            f"archive {archive} is not SOP's: expected one top folder with {TRAIN_LIST} and {TEST_LIST}, "
            f"found {len(members)} files below {sorted(tops)[:5]}; check sop_url"
        )
    return below_top


def read_list(file: Path) -> Split:
    """Read SOP's own list of images: a header, then a line `image_id class_id super_class_id path` for each image.

    Class numbers start at 0, class ids at 1. InputError, with the line, when the list is missing or malformed.
    """
    split, form = Split([], []), "image_id class_id super_class_id path"
    for number, line in numbered_lines(file, f"{file.parent} is not SOP's folder; choose another sop_dir or move it"):
        fields = IMAGE.fullmatch(line)
        if bool(fields) != (number > 1):
            raise malformed(file, number, f"'{form}', class ids from 1" if number > 1 else f"the header '{form}'", line)
        if fields:
            split.classes.append(int(fields[1]) - 1)
            split.paths.append(fields[2])
    if not split.paths:
        raise InputError(f"{file} lists no images: unpack the archive again")
    return split
