"""Runs that differ only in their seed, and in the files that they read and write."""

import json
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from utils.logs.runs import Run, find_run_folders, read_run
from utils.text import printable

# config keys in which runs of one group may differ
WHERE_WRITTEN = {"temp_dir", "continue_run", "save_minutes"}
WHERE_READ = {"resume", "cache_nn_inds", "train_cache_nn_inds", "test_cache_nn_inds"}
WHERE_READ |= {"train_cache_nn_dists", "test_cache_nn_dists"}  # published logs

NEVER = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Group:
    """Runs of different seeds, two or more, one of each; `num_repeats` further runs of these seeds are left out."""

    runs: list[Run]
    num_repeats: int


def join_continued(runs: Sequence[Run]) -> list[Run]:
    """Each run once: of one that was stopped and continued the last part, which has all scalars, with the durations
    and problems of all. Parts have one `run_id`, and began at different times."""
    parts: dict[object, list[Run]] = defaultdict(list)
    for run in runs:
        parts[run.run_id if isinstance(run.run_id, str) else run.folder].append(run)
    joined = []
    for same in parts.values():
        starts = {run.start for run in same if run.start}
        if len(same) == 1 or len(starts) < len(same):
            joined += same
            continue
        *earlier, latest = sorted(same, key=_start)
        durations = [run.duration for run in same if run.duration is not None]
        problems = [f"{run.folder}: {problem}" for run in earlier for problem in run.problems]
        duration = sum(durations, timedelta()) if len(durations) == len(same) else None
        joined.append(replace(latest, duration=duration, problems=latest.problems + problems))
    return joined


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Completed runs with recalls that differ only in `seed` and in the files they read and write.

    Of runs that repeat a seed and the files read, only the last one started counts. Where a seed still occurs twice
    then, runs of a group must have read the same files too, or files whose paths differ only in the seed: what differs
    may be the checkpoint, as when a frozen and a finetuned model are evaluated.
    """
    completed = [run for run in runs if run.status == "COMPLETED" and run.best and run.config]
    repeats = [sorted(same, key=_start) for same in _partition(completed, WHERE_WRITTEN)]
    num_repeats = {latest.folder: len(earlier) for *earlier, latest in repeats}
    groups = []
    for group in _partition([latest for *_, latest in repeats], {"seed"} | WHERE_WRITTEN | WHERE_READ):
        if _seeds_differ(group):
            groups.append(group)
            continue
        alike = _partition(group, {"seed"} | WHERE_WRITTEN)
        alone = [run for (run, *others) in alike if not others]
        groups += alike + _partition(alone, {"seed"} | WHERE_WRITTEN, seed_in_paths=True)
    return [
        Group(group, sum(num_repeats[run.folder] for run in group))
        for group in groups
        if len(group) > 1 and _seeds_differ(group)
    ]


def _start(run: Run) -> datetime:
    return run.start or NEVER


def _seeds_differ(group: Sequence[Run]) -> bool:
    return len({json.dumps(run.config.get("seed"), sort_keys=True) for run in group}) == len(group)


def _partition(runs: Sequence[Run], ignored: set[str], seed_in_paths: bool = False) -> list[list[Run]]:
    """Runs of equal configs, but for `ignored` keys, and for a run's seed in its paths when `seed_in_paths`."""
    groups = defaultdict(list)
    for run in runs:
        seed = re.compile(rf"(?<!\d){re.escape(str(run.config.get('seed')))}(?!\d)") if seed_in_paths else None
        groups[json.dumps([run.experiment, _compared(run.config, ignored, seed)], sort_keys=True)].append(run)
    return list(groups.values())


def _compared(node, ignored: set[str], seed: re.Pattern | None):
    """A config without `ignored` keys, with one name for what `seed` matches in its texts."""
    if isinstance(node, dict):
        return {key: _compared(node[key], ignored, seed) for key in node if key not in ignored}
    return seed.sub("seed", node) if seed and isinstance(node, str) else node


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
