"""The published evaluations, from the network to one table: `make reproduce`, or `python -m benchmarks reproduce`.

Fetches SOP, the published checkpoints and neighbour files, evaluates, and compares the recalls with the published ones.
Finished steps are skipped: downloads are resumed, and a completed evaluation with the same settings and files is read
from its run folder. The exit code is 1 if a recall differs from the published one by more than 0.1.
"""

import argparse
import contextlib
import io
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import eval_global
import eval_rerank
from sop.ingredient import MAY_CHANGE_ON_RESUME, input_files
from sop.preparation.published import CHECKPOINTS, evaluation_commands
from utils.io.disk import md5
from utils.logs.json_reader import nested, read_json
from utils.logs.runs import Run, find_run_folders, read_run
from utils.logs.table import ranking_rows
from utils.text import text_table
from utils.training.resume import run_signature

ROOT = Path(__file__).parents[1]
PUBLISHED = {  # R@1, R@10 and R@100 in %, by Sacred's folder
    "logs/eval_global_r50": (80.7, 91.9, 96.6),
    "logs/eval_rerank_frozen_r50": (81.8, 92.4, 96.6),
    "logs/eval_rerank_finetune_r50": (84.5, 93.2, 96.6),
}
TOLERANCE = 0.1  # points, as the published figures are rounded
EVALUATIONS = {"eval_global.py": eval_global.ex, "eval_rerank.py": eval_rerank.ex}


def completed(folder: str, words: Sequence[str]) -> Run | None:
    """The last completed run in a folder with the settings and the files' MD5 sums of a command.

    Paths, and settings that do not change results, may differ.
    """
    expected = config_of(words)
    for path in reversed(find_run_folders(Path(folder)) if Path(folder).is_dir() else []):
        run = read_run(path)
        if run.status == "COMPLETED" and run.best and _settings(run.config) == _settings(expected):
            sums = nested(read_json(path / "info.json"), "md5")
            if isinstance(sums, dict) and sorted(map(str, sums.values())) == sorted(_sums(expected)):
                return run
    return None


def config_of(words: Sequence[str]) -> dict:
    """All settings of a command, given as its words."""
    settings = words[words.index("with") :]
    with contextlib.redirect_stdout(io.StringIO()):
        run = EVALUATIONS[words[0]].run_commandline([words[0], "print_config", "--loglevel=ERROR", *settings])
    assert run is not None
    return run.config


def _settings(config: Mapping[str, Any]) -> object:
    return run_signature(config, [], "", MAY_CHANGE_ON_RESUME)["settings"]


def _sums(config: Mapping[str, Any]) -> list[str]:
    """The MD5 sums of the files that an evaluation reads."""
    dataset = config["dataset"]
    lists = input_files(*(dataset[name] for name in ("data_path", "train_file", "test_file", "train_cache_nn_inds")))
    paths = [config["resume"], *([config["cache_nn_inds"]] if "cache_nn_inds" in config else []), *lists]
    return [md5(path) for path in dict.fromkeys(map(str, paths))]


def command(*words: str) -> None:
    """Run one of the project's commands in this folder; SystemExit with its exit code where it fails."""
    print("==", *words, flush=True)
    done = subprocess.run([sys.executable, str(ROOT / words[0]), *words[1:]])
    if done.returncode:
        sys.exit(done.returncode)


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--prepare", nargs="*", default=[], metavar="SETTING", help="further settings of prepare_data.py"
    )
    parser.add_argument("--evaluate", nargs="*", default=[], metavar="SETTING", help="further settings of evaluations")
    options = parser.parse_args(arguments)

    for fetched in ([], ["checkpoints"], ["neighbours"]):
        command("prepare_data.py", "--unobserved", *fetched, "with", *options.prepare)
    runs = {}
    commands = evaluation_commands(CHECKPOINTS, "rrt_sop_ckpts", "rrt_sop_caches")
    for folder, words in zip(PUBLISHED, map(shlex.split, commands), strict=True):
        words = [*words[1:], *options.evaluate]
        if completed(folder, words) is None:
            command(*words)
        run = completed(folder, words)
        if run is None:
            print(f"{folder} holds no completed run: what is recorded there cannot be read", file=sys.stderr)
            return 1
        runs[folder] = run
    rows, differs = [], False
    for folder, run in runs.items():
        for k, published in zip((1, 10, 100), PUBLISHED[folder], strict=True):
            difference = run.best.get(k, float("nan")) - published
            differs |= not abs(difference) <= TOLERANCE + 1e-9
            rows.append(
                {"evaluation": Path(folder).name, "": f"R@{k}", "published": published, "measured": run.best.get(k)}
                | {"difference": f"{difference:+.2f}", "duration": run.duration, "device": run.device}
            )
    print(f"\n{text_table(rows)}")
    if rankings := ranking_rows(list(runs.values())):
        print(f"\nOther rankings of the same weights:\n\n{text_table(rankings)}")
    print("\nA recall differs by more than 0.1" if differs else "\nEvery recall is the published one, within 0.1")
    return int(differs)
