"""The published checkpoints and neighbour files: names, address, download, and the commands that evaluate them."""

import shutil
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import NamedTuple

from huggingface_hub import HfApi

from sop.preparation.archive import is_safe, open_archive
from sop.preparation.atomic_folder import BUSY_ADVICE
from utils.errors import InputError
from utils.io.atomic import atomic_write
from utils.io.hub import ask, in_one_line
from utils.io.lock import exclusive_lock

HUB_REPOSITORY = "fwtan/rrt_sop_data"
RERANK = (
    "python eval_rerank.py -F logs/eval_rerank_{backbone}_r50 with temp_dir=logs/eval_rerank_{backbone}_r50 "
    "resume={{checkpoints}}/rrt_r50_sop_rerank_{backbone}.pt dataset.sop_rerank model.resnet50 "
    "cache_nn_inds={{neighbours}}/rrt_r50_sop_nn_inds_test.pkl"
)
EVAL_GLOBAL = (
    "python eval_global.py -F logs/eval_global_r50 with temp_dir=logs/eval_global_r50 "
    "resume={checkpoints}/rrt_r50_sop_global.pt dataset.sop_global model.resnet50"
)
EVAL_RERANK = tuple(RERANK.format(backbone=backbone) for backbone in ("frozen", "finetune"))


class Published(NamedTuple):
    """A folder of the repository, its files (bare or in zip files), and the commands that use them."""

    folder: str
    names: tuple[str, ...]
    commands: tuple[str, ...]


CHECKPOINTS = Published(
    "rrt_sop_ckpts",
    ("rrt_r50_sop_global.pt", "rrt_r50_sop_rerank_frozen.pt", "rrt_r50_sop_rerank_finetune.pt"),
    (EVAL_GLOBAL, *EVAL_RERANK),
)
NEIGHBOURS = Published("rrt_sop_caches", ("rrt_r50_sop_nn_inds_test.pkl", "rrt_r50_sop_nn_inds_train.pkl"), EVAL_RERANK)


def fetch_published(published: Published, repository: str, target: Path) -> None:
    """Download the files that are missing in the folder `target`, each completely or not at all.

    InputError, with the address to download them from by hand, if the hub cannot be reached or lacks them, and while
    another process downloads into `target`.
    """
    if not _missing(published, target):
        print(f"{', '.join(published.names)}: all in {target} already")
        return
    with exclusive_lock(target / ".lock", str(target), BUSY_ADVICE):
        _fetch_missing(published, repository, target)


def _fetch_missing(published: Published, repository: str, target: Path) -> None:
    for leftover in target.glob(".downloading*"):  # of a call that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    hub, missing = HfApi(), _missing(published, target)
    by_hand = f"fetch {', '.join(missing)} by hand from {hub.endpoint}/{repository}/tree/main/{published.folder}"
    try:
        ask(hub.endpoint)
        with TemporaryDirectory(prefix=".downloading", dir=target, ignore_cleanup_errors=True) as temporary:
            for path in hub.list_repo_files(repository):
                is_wanted = Path(path).name in missing or path.endswith(".zip")
                if path.startswith(f"{published.folder}/") and is_safe(path) and is_wanted:
                    _install(Path(hub.hf_hub_download(repository, path, local_dir=temporary)), target)
    except InputError:
        raise
    except Exception as error:  # the hub's client and its transports raise many kinds
        raise InputError(
            f"{repository} could not be fetched ({in_one_line(error)}): try again later, or {by_hand} into {target}"
        ) from None
    if still_missing := _missing(published, target):
        raise InputError(f"{repository} does not have {', '.join(still_missing)} in {published.folder}/: {by_hand}")


def _missing(published: Published, target: Path) -> list[str]:
    return [name for name in published.names if not (target / name).exists()]


def _install(file: Path, target: Path) -> None:
    """Move a downloaded file to `target`; a zip file is unpacked there, except files that exist already."""
    if file.suffix != ".zip":
        file.replace(target / file.name)
        return
    with open_archive(file) as (content, members):
        for path, member in members.items():
            if not (target / path.name).exists():
                with content.open(member) as source, atomic_write(target / path.name) as unpacked:
                    shutil.copyfileobj(source, unpacked)


def evaluation_commands(published: Published, checkpoint_dir: str, neighbour_dir: str) -> list[str]:
    """The commands that evaluate published files, for folders of those names."""
    return [
        command.format(checkpoints=PurePosixPath(checkpoint_dir), neighbours=PurePosixPath(neighbour_dir))
        for command in published.commands
    ]
