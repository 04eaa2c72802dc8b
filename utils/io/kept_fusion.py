"""Weights fitted for a ranking, added to a checkpoint that stands."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.errors import InputError
from utils.io.checkpoint import read_tensors, save_tensors, state_of
from utils.io.disk import md5


def add_fusion(path: Path | str, fusion: Mapping[str, Any]) -> None:
    """Write a checkpoint again, with a record of fitted weights; InputError where it cannot be read or written."""
    content = read_tensors(path)
    if not isinstance(content, dict) or "state" not in content:
        content = {"state": state_of(content, path)}
    save_tensors(path, content | {"fusion": dict(fusion), "made_from": content.get("made_from", md5(path))})


def is_made_from(path: Path | str, digest: str) -> bool:
    """Whether a checkpoint is the file of this MD5 sum, or that file with `add_fusion`."""
    if md5(path) == digest:
        return True
    try:
        content = read_tensors(path)
    except InputError:
        return False
    return isinstance(content, dict) and content.get("made_from") == digest
