"""SOP's archive: where it is, how it is unpacked, and the split files made from it."""

import shutil
import stat
import zipfile
from pathlib import Path, PurePosixPath, PureWindowsPath

from tqdm import tqdm

from sop.dataset import Split
from utils.errors import InputError
from utils.files import atomic_write

SOP_URL = "http://ftp.cs.stanford.edu/cs/cvgl/Stanford_Online_Products.zip"
SOP_MD5 = "7f73d41a2f44250d4779881525aea32e"
OFFICIAL_URLS = {
    SOP_URL,
    SOP_URL.replace("http:", "https:"),
    "ftp://cs.stanford.edu/cs/cvgl/Stanford_Online_Products.zip",
}
LISTS = {"train": "Ebay_train.txt", "test": "Ebay_test.txt"}
MAX_MEMBERS = 1_000_000
MAX_UNPACKED = 64 << 30  # bytes


def official_md5(url: str) -> str | None:
    """The MD5 of the archive at an official address, None for any other."""
    return SOP_MD5 if url in OFFICIAL_URLS else None


def unpack(archive: Path, folder: Path) -> None:
    """Unpack the archive's single top folder as `folder`, whole or not at all.

    What an interrupted call left is started over. Raises InputError for an archive that is damaged, that would write
    outside the folder, or that is larger than any dataset of this kind.
    """
    partial = folder.with_name(f".{folder.name}.unpacking")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with zipfile.ZipFile(archive) as content:
            members = _safe_members(content, archive)
            with tqdm(members, desc=f"Unpacking {archive.name}", unit="file") as progress:
                for member, relative in progress:
                    target = partial / relative
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with content.open(member) as source, target.open("xb") as file:
                        shutil.copyfileobj(source, file)
        partial.replace(folder)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise InputError(f"archive {archive} is damaged ({error}): delete it and run prepare_data.py again") from error
    except OSError as error:
        raise InputError(f"{archive} could not be unpacked as {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _safe_members(content: zipfile.ZipFile, archive: Path) -> list[tuple[zipfile.ZipInfo, PurePosixPath]]:
    """An archive's files with their paths below its single top folder; InputError when one is not to be trusted."""
    members = [member for member in content.infolist() if not member.filename.startswith("__MACOSX/")]
    size = sum(member.file_size for member in members)
    if len(members) > MAX_MEMBERS or size > MAX_UNPACKED:
        raise InputError(
            f"archive {archive} holds {len(members)} members and {size} bytes: too many for a dataset, refused"
        )
    safe = []
    for member in members:
        path, kind = PurePosixPath(member.filename), stat.S_IFMT(member.external_attr >> 16)
        trusted = (
            len(path.parts) > 0
            and not path.is_absolute()
            and ".." not in path.parts
            and not any(c in member.filename for c in "\\:\0")
            and not any(PureWindowsPath(part).is_reserved() for part in path.parts)
            and kind in (0, stat.S_IFREG, stat.S_IFDIR)
        )
        if not trusted:
            raise InputError(
                f"archive {archive} was refused: its member {member.filename!r} could be written elsewhere"
            )
        if not member.is_dir():
            safe.append((member, path))
    tops = {path.parts[0] for _, path in safe}
    if len(tops) != 1 or any(len(path.parts) < 2 for _, path in safe):
        raise InputError(
            f"archive {archive} is not laid out like SOP's: expected one top folder, found {sorted(tops)[:5]}"
        )
    return [(member, path.relative_to(path.parts[0])) for member, path in safe]


def write_split(folder: Path, name: str, file_name: str) -> int:
    """Write a split file beside SOP's own list of the images of `name` ('train' or 'test'); returns their number.

    One line an image, `path,class_id-1`, in the list's order. InputError for a list that is missing or malformed.
    """
    source, split = folder / LISTS[name], Split([], [])
    if not source.is_file():
        raise InputError(f"{source} does not exist: {folder} is not SOP's folder; choose another sop_dir or delete it")
    for number, line in enumerate(source.read_text().splitlines()[1:], start=2):
        fields = line.split(maxsplit=3)
        if len(fields) != 4 or not fields[1].isdigit():
            raise InputError(
                f"{source}, line {number}: expected 'image_id class_id super_class_id path', found {line!r}"
            )
        split.paths.append(fields[3])
        split.classes.append(int(fields[1]) - 1)
    with atomic_write(folder / file_name) as file:
        file.write("\n".join(f"{path},{number}" for path, number in zip(*split, strict=True)).encode())
    return len(split.paths)
