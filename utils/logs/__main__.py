"""Tables and curves of runs: `python -m utils.logs logs/… [--format text|csv|markdown] [--plot FILE]`."""

import argparse
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from utils.errors import InputError
from utils.logs.characters import printable
from utils.logs.fitting import fitted_table
from utils.logs.groups import join_continued
from utils.logs.runs import find_run_folders, read_run
from utils.logs.table import as_csv, as_tables, markdown_table, unread_lines


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code: 0 when a run was read and a plot that was asked for is drawn."""
    parser = argparse.ArgumentParser(
        prog="python -m utils.logs",
        description="Table of the Sacred runs in folders: best and last recalls in %, and mean ± spread over seeds.",
        epilog="Epochs count those trained, 0 is before training. STALE: not ended, but silent for five minutes.",
    )
    parser.add_argument("folders", nargs="+", type=Path, help="searched for run folders, to any depth")
    parser.add_argument(
        "--format",
        choices=("text", "csv", "markdown"),
        default="text",
        help="text fits 100 columns, the others have all",
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw train.loss and val.recall@K (.png, .pdf, .svg)")
    options = parser.parse_args(arguments)

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal's encoding may lack ± and …
    found = {folder: find_run_folders(folder) for folder in options.folders}
    folders: dict[str, Path] = {}  # by their real paths: one may be named twice
    for path in (path for paths in found.values() for path in paths):
        folders.setdefault(os.path.realpath(path), path)
    runs = join_continued([read_run(folder) for folder in folders.values()])
    if runs and options.format == "csv":
        print(as_csv(runs), end="")
        for line in unread_lines(runs):
            print(f"could not be read: {line}", file=sys.stderr)
    elif runs:
        layout = (fitted_table, "") if options.format == "text" else (markdown_table, "## ")
        print(as_tables(runs, *layout), end="")
    for folder in (folder for folder, paths in found.items() if not paths):
        problem = "no Sacred run was found in it" if folder.is_dir() else "no such folder"
        print(f"{printable(folder)}: {problem}", file=sys.stderr)
    if all(run.status == "UNREADABLE" for run in runs):
        print("no run could be read: give folders named by `-F`, or one that holds such", file=sys.stderr)
        return 1
    if options.plot:
        from utils.logs.plots import plot_runs  # matplotlib takes longer to import than everything else here

        try:
            plot_runs(runs, options.plot)
        except InputError as error:
            print(error, file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
