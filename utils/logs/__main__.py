"""Tables and curves of runs: `python -m utils.logs logs/… [--format text|csv|markdown] [--plot FILE]`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from utils.errors import InputError
from utils.logs.runs import find_run_folders, read_run
from utils.logs.table import as_csv, as_tables, markdown_table, text_table, unread_lines


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code: 0 when a run was read and a plot that was asked for is drawn."""
    parser = argparse.ArgumentParser(
        prog="python -m utils.logs",
        description="Table of the Sacred runs in folders: best and last recalls in %, and mean ± spread over seeds.",
        epilog="Epochs count those trained, 0 is before training. STALE: not ended, but silent for five minutes.",
    )
    parser.add_argument("folders", nargs="+", type=Path, help="searched for run folders, to any depth")
    parser.add_argument("--format", choices=("text", "csv", "markdown"), default="text")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw train.loss and val.recall@K (.png, .pdf, .svg)")
    options = parser.parse_args(arguments)

    found = {folder: find_run_folders(folder) for folder in options.folders}
    runs = [read_run(folder) for folder in dict.fromkeys(path for paths in found.values() for path in paths)]
    if runs and options.format == "csv":
        print(as_csv(runs), end="")
        for line in unread_lines(runs):
            print(f"could not be read: {line}", file=sys.stderr)
    elif runs:
        print(
            as_tables(runs, text_table) if options.format == "text" else as_tables(runs, markdown_table, "## "), end=""
        )
    for folder in (folder for folder, paths in found.items() if not paths):
        print(f"{folder}: {'no Sacred run was found in it' if folder.is_dir() else 'no such folder'}", file=sys.stderr)
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
