"""The published checkpoints and neighbour files: their names, where they are, how they are evaluated."""

import shutil
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import NamedTuple

from huggingface_hub import HfApi, get_session

from sop.preparation.archive import is_safe, open_archive
from sop.preparation.unfinished import LATER
from utils.errors import InputError
from utils.io.atomic import atomic_write
from utils.io.lock import exclusive_lock

TIMEOUT = 10  # seconds that a network has for each answer to a first question
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
    """A folder of the repository, the files it is known to hold (bare or in zip files), the commands that use them."""

    folder: str
    names: tuple[str, ...]
    commands: tuple[str, ...]


CHECKPOINTS = Published(
    "rrt_sop_ckpts",
    ("rrt_r50_sop_global.pt", "rrt_r50_sop_rerank_frozen.pt", "rrt_r50_sop_rerank_finetune.pt"),
    (EVAL_GLOBAL, *EVAL_RERANK),
)
NEIGHBOURS = Published("rrt_sop_caches", ("rrt_r50_sop_nn_inds_test.pkl", "rrt_r50_sop_nn_inds_train.pkl"), EVAL_RERANK)


def fetch(published: Published, repository: str, target: Path) -> None:
    """Bring the published files of these names into the folder `target`, each whole or not at all; those that are there
    are kept.

    InputError, with what to do by hand, when the hub cannot be reached or does not have them, and while another process
    fetches into `target`.
    """
    if not _missing(published, target):
        print(f"{', '.join(published.names)}: all in {target} already")
        return
    with exclusive_lock(target / ".lock", str(target), LATER):
        _fetch_missing(published, repository, target)


def _fetch_missing(published: Published, repository: str, target: Path) -> None:
    for leftover in target.glob(".arriving*"):  # of a call that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    hub, missing = HfApi(), _missing(published, target)
    by_hand = f"fetch {', '.join(missing)} by hand from {hub.endpoint}/{repository}/tree/main/{published.folder}"
    try:
        ask(hub.endpoint)
        with TemporaryDirectory(prefix=".arriving", dir=target, ignore_cleanup_errors=True) as arriving:
            for path in hub.list_repo_files(repository):
                is_wanted = Path(path).name in missing or path.endswith(".zip")
                if path.startswith(f"{published.folder}/") and is_safe(path) and is_wanted:
                    _put(Path(hub.hf_hub_download(repository, path, local_dir=arriving)), target)
    except InputError:
        raise
    except Exception as error:  # the hub's client, its transports and the system below them raise many kinds
        raise InputError(
            f"{repository} could not be fetched ({in_one_line(error)}): try again later, or {by_hand} into {target}"
        ) from None
    if lacking := _missing(published, target):
        raise InputError(f"{repository} does not have {', '.join(lacking)} in {published.folder}/: {by_hand}")


def ask(endpoint: str) -> None:
    """Raise what the hub's client does where the hub cannot be reached: at once, as it would else try for half a
    minute."""
    get_session().head(endpoint, timeout=TIMEOUT)


def in_one_line(error: Exception) -> str:
    """What an error says, or is."""
    return " ".join(str(error).split()) or type(error).__name__


def _missing(published: Published, target: Path) -> list[str]:
    return [name for name in published.names if not (target / name).exists()]


def _put(file: Path, target: Path) -> None:
    """Move a file that has arrived into `target`; of a zip file, the files in it that are not there yet."""
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
