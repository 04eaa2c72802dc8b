"""Tables and curves of runs: `python -m utils.logs logs/… [--format text|csv|markdown] [--plot FILE]`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from utils.errors import InputError
from utils.logs.groups import collect_runs, group_runs
from utils.logs.table import as_csv, as_tables, fixed_table, problem_lines
from utils.runtime.output import exit_code, unfailing_output
from utils.settings import expand_home
from utils.text import markdown_table, markdown_text


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code: 0 when a run was read and `--plot`, if given, was drawn."""
    arguments = sys.argv[1:] if arguments is None else arguments
    with unfailing_output() as output_error:
        if arguments[:1] == ["report"]:
            print("the page has a command of its own: python -m report RUN... --out FILE", file=sys.stderr)
            return 2
        return print_tables(arguments) or exit_code(output_error())


def print_tables(arguments: Sequence[str]) -> int:
    """Print the tables; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m utils.logs",
        description="Table of the Sacred runs in folders: best and last recalls in %, and mean ± spread over seeds.",
        epilog="Epoch 0 is before training. STALE: the run has not ended, but has been silent for five minutes. "
        "`python -m report RUN... --out FILE` writes a page to look at.",
    )
    parser.add_argument("folders", nargs="+", type=Path, help="searched for run folders, to any depth")
    parser.add_argument(
        "--format",
        choices=("text", "csv", "markdown"),
        default="text",
        help="text has the main columns, the others have all",
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw train.loss and val.recall@K (.png, .pdf, .svg)")
    options = argparse.Namespace(**expand_home(vars(parser.parse_args(arguments))))
    runs, problems = collect_runs(options.folders)
    if runs and options.format == "csv":
        print(as_csv(runs), end="")
        for line in problem_lines(runs):
            print(f"could not be read: {line}", file=sys.stderr)
    elif runs:
        layout = (fixed_table,) if options.format == "text" else (markdown_table, "## ", markdown_text)
        print(as_tables(runs, *layout), end="")
    for line in problems:
        print(line, file=sys.stderr)
    if all(run.status == "UNREADABLE" for run in runs):
        return 1
    if options.plot:
        from utils.logs.plots import plot_runs  # matplotlib takes longer to import than everything else here

        try:
            plot_runs(runs, group_runs(runs), options.plot)
        except InputError as error:
            print(error, file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
