"""Groups: runs that differ only in their seed and in the files that they read and write."""

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

# settings in which runs of one group may differ
OUTPUT_SETTINGS = {"temp_dir", "continue_run", "save_minutes"}
INPUT_SETTINGS = {"resume", "cache_nn_inds", "train_cache_nn_inds", "test_cache_nn_inds"}
INPUT_SETTINGS |= {"train_cache_nn_dists", "test_cache_nn_dists"}  # of the published runs

NEVER = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Group:
    """Two or more runs, one for each seed; `num_repeats` further runs of these seeds are left out."""

    runs: list[Run]
    num_repeats: int


def join_continued(runs: Sequence[Run]) -> list[Run]:
    """Each run once. Of a continued run the last part is returned, which has all scalars, with the durations and
    problems of all parts. Parts have the same `run_id` and different starts; a copied folder has the same start."""
    by_id: dict[object, list[Run]] = defaultdict(list)
    for run in runs:
        by_id[run.run_id if isinstance(run.run_id, str) else run.folder].append(run)
    joined = []
    for parts in by_id.values():
        starts = {run.start for run in parts if run.start}
        if len(parts) == 1 or len(starts) < len(parts):
            joined += parts
            continue
        *earlier, latest = sorted(parts, key=_start)
        durations = [run.duration for run in parts if run.duration is not None]
        problems = [f"{run.folder}: {problem}" for run in earlier for problem in run.problems]
        duration = sum(durations, timedelta()) if len(durations) == len(parts) else None
        joined.append(replace(latest, duration=duration, problems=latest.problems + problems))
    return joined


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Completed runs with recalls that differ only in `seed` and in the files they read and write.

    Where runs have the same seed and read the same files, only the one started last counts. Where a seed still occurs
    twice, a frozen and a finetuned checkpoint may have been evaluated: runs of a group must then have read the same
    files, or files whose paths differ only in the seed.
    """
    completed = [run for run in runs if run.status == "COMPLETED" and run.best and run.config]
    repeats = [sorted(repeated, key=_start) for repeated in _partition(completed, OUTPUT_SETTINGS)]
    num_repeats = {latest.folder: len(earlier) for *earlier, latest in repeats}
    groups = []
    for group in _partition([latest for *_, latest in repeats], {"seed"} | OUTPUT_SETTINGS | INPUT_SETTINGS):
        if _seeds_differ(group):
            groups.append(group)
            continue
        same_inputs = _partition(group, {"seed"} | OUTPUT_SETTINGS)
        single = [run for (run, *others) in same_inputs if not others]
        groups += same_inputs + _partition(single, {"seed"} | OUTPUT_SETTINGS, seed_in_paths=True)
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
    """Runs by their configs without `ignored` keys; with `seed_in_paths` also without the run's seed in its paths."""
    groups = defaultdict(list)
    for run in runs:
        seed = re.compile(rf"(?<!\d){re.escape(str(run.config.get('seed')))}(?!\d)") if seed_in_paths else None
        groups[json.dumps([run.experiment, _comparable(run.config, ignored, seed)], sort_keys=True)].append(run)
    return list(groups.values())


def _comparable(node, ignored: set[str], seed: re.Pattern | None):
    """A config without `ignored` keys, every match of `seed` in its texts replaced by `seed`."""
    if isinstance(node, dict):
        return {key: _comparable(node[key], ignored, seed) for key in node if key not in ignored}
    return seed.sub("seed", node) if seed and isinstance(node, str) else node


def collect_runs(folders: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """The runs, and a line for each folder without runs; one line more where no run could be read."""
    paths: dict[str, Path] = {}  # by their real paths, as a folder may be given twice
    problems = []
    for folder in folders:
        run_folders = find_run_folders(folder)
        for path in run_folders:
            paths.setdefault(os.path.realpath(path), path)
        if not run_folders:
            reason = "no Sacred run was found in it" if folder.is_dir() else "no such folder"
            problems.append(f"{printable(folder)}: {reason}")
    runs = join_continued([read_run(path) for path in paths.values()])
    if all(run.status == "UNREADABLE" for run in runs):
        problems.append("no run could be read: give folders named by `-F`, or one that holds such")
    return runs, problems
