"""The runs below some folders, each once."""

import os
from collections.abc import Sequence
from pathlib import Path

from utils.logs.characters import printable
from utils.logs.groups import join_continued
from utils.logs.runs import Run, find_run_folders, read_run


def collect_runs(folders: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """The runs, and a line for each folder that holds none, and one more where none could be read."""
    found = {folder: find_run_folders(folder) for folder in folders}
    paths: dict[str, Path] = {}  # by their real paths: one may be named twice
    for path in (path for paths_below in found.values() for path in paths_below):
        paths.setdefault(os.path.realpath(path), path)
    runs = join_continued([read_run(folder) for folder in paths.values()])
    problems = [
        f"{printable(folder)}: {'no Sacred run was found in it' if folder.is_dir() else 'no such folder'}"
        for folder, paths_below in found.items()
        if not paths_below
    ]
    if all(run.status == "UNREADABLE" for run in runs):
        problems.append("no run could be read: give folders named by `-F`, or one that holds such")
    return runs, problems
