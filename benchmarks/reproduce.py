"""The published evaluations, from the network to one table: `make reproduce`, or `python -m benchmarks.reproduce`.

Fetches SOP, the published checkpoints and neighbour files, evaluates, and compares the recalls with the published ones.
What is there already is not done again: downloads go on where they stopped, and an evaluation whose Sacred folder says
COMPLETED is read from there. The exit code is 1 when a recall is further than 0.1 from the published one.
"""

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

from sop.preparation.published import CHECKPOINTS, evaluation_commands
from utils.logs.runs import Run, find_run_folders, read_run
from utils.logs.table import ranking_rows, text_table

ROOT = Path(__file__).parents[1]
PUBLISHED = {  # R@1, R@10 and R@100 in %, by Sacred's folder
    "logs/eval_global_r50": (80.7, 91.9, 96.6),
    "logs/eval_rerank_frozen_r50": (81.8, 92.4, 96.6),
    "logs/eval_rerank_finetune_r50": (84.5, 93.2, 96.6),
}
TOLERANCE = 0.1  # points, as the published figures are rounded


DEFAULTS = {"scorer": "matcher", "num_candidates": 100, "fusion": None, "knn_index": "Flat", "query_set": "test"}


def completed(folder: str, words: list[str]) -> Run | None:
    """The last run in a folder that has ended well, of the published command: its files, and no other ranking."""
    asked = dict(word.split("=", 1) for word in words if word.startswith(("resume=", "cache_nn_inds=")))
    for path in reversed(find_run_folders(Path(folder)) if Path(folder).is_dir() else []):
        run = read_run(path)
        same = all(run.config.get(name) == value for name, value in asked.items())
        plain = all(run.config.get(name, value) == value for name, value in DEFAULTS.items())
        if run.status == "COMPLETED" and run.best and same and plain:
            return run
    return None


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
        if completed(folder, words) is None:
            command(*words[1:], *options.evaluate)
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


if __name__ == "__main__":
    sys.exit(main())
