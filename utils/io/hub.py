"""Files of the Hugging Face hub: fetched once, then taken from its cache, with or without a network; uploaded."""

import re
from pathlib import Path

import huggingface_hub
from huggingface_hub import HfApi, constants, get_session

from utils.errors import InputError

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
TIMEOUT = 10  # seconds that the hub has to answer a first question


def ask(endpoint: str) -> None:
    """Raise what the hub's client does where the hub cannot be reached: at once, as it would else try for half a
    minute."""
    get_session().head(endpoint, timeout=TIMEOUT)


def in_one_line(error: Exception) -> str:
    """What an error says, or is."""
    return " ".join(str(error).split()) or type(error).__name__


def hub_files(repository: str, *names: str) -> list[Path]:
    """Files of a repository, of the cache where the hub cannot be reached; InputError where they cannot be had."""
    reason = None
    try:
        ask(constants.ENDPOINT)
    except Exception as error:  # the hub's client, its transports and the system below them raise many kinds
        reason = in_one_line(error)
    try:
        return [
            Path(huggingface_hub.hf_hub_download(repository, name, local_files_only=reason is not None))
            for name in names
        ]
    except Exception as error:
        raise InputError(
            f"{' and '.join(names)} of {constants.ENDPOINT}/{repository} could not be fetched "
            f"({reason or in_one_line(error)})"
        ) from None


def upload(folder: Path, repository: str, private: bool | None, token: str | None, revision: str | None) -> str:
    """Upload a folder's files in one commit, whose address is returned. The repository, and its branch `revision`, are
    made where there are none. InputError where the hub refuses or cannot be reached."""
    if not HUB_NAME.fullmatch(str(repository)):
        raise InputError(f"repo_id={repository!r}: give 'OWNER/NAME'")
    api = HfApi(constants.ENDPOINT, token=token)
    try:
        ask(constants.ENDPOINT)
        api.create_repo(repository, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repository, branch=revision, exist_ok=True)
        return api.upload_folder(repo_id=repository, folder_path=folder, revision=revision).commit_url
    except Exception as error:
        raise InputError(
            f"{repository} could not be uploaded to {constants.ENDPOINT} ({in_one_line(error)}): give token=, log in "
            "with `hf auth login`, or try again later"
        ) from None
