"""Runs as tables: a row for each run, and mean ± sample standard deviation over seeds; text, CSV or Markdown."""

import csv
from collections.abc import Callable, Sequence
from datetime import timedelta
from io import StringIO
from statistics import mean, stdev

from utils.io.ranking_names import RANKINGS
from utils.logs.groups import Group, group_runs
from utils.logs.json_reader import nested
from utils.logs.recalls import GAIN, MEASURES, Recalls
from utils.logs.runs import Run
from utils.text import Row, natural_key, printable, text_table

# columns of a text table; CSV and Markdown have all
TEXT_COLUMNS = {"folder", "ranking", "group", "n", "seed", "seeds", "repeats left out", "duration", "status"}
TEXT_COLUMNS |= {"R@1 best", "best epoch", "R@1 last", "R@1", "R@10", "R@100", "mAP@R", "MRR", GAIN}


def run_rows(runs: Sequence[Run], groups: Sequence[Group]) -> list[Row]:
    """One row per run; recalls in %, None where not known. Groups count from 1."""
    ks = sorted({k for run in runs for k in (*run.best, *run.last)})
    group_of = {run.folder: number for number, group in enumerate(groups, 1) for run in group.runs}
    return [
        {
            "folder": run.folder,
            "experiment": run.experiment,
            "script": run.script,
            "dataset": nested(run.config, "dataset", "name"),
            "seed": run.config.get("seed"),
            **{f"R@{k} best": run.best.get(k) for k in ks},
            "best epoch": run.best_epoch,
            **{f"R@{k} last": run.last.get(k) for k in ks},
            "duration": run.duration,
            "memory (GB)": run.memory,
            "status": run.status,
            "group": group_of.get(run.folder),
        }
        for run in runs
    ]


def group_rows(groups: Sequence[Group], as_cell: Callable[[float, float], object]) -> list[Row]:
    """One row per group. `as_cell(mean, sample standard deviation)` makes the cell of a recall that all its runs have.

    Where seeds were repeated, a column counts the runs that are left out.
    """
    rows: list[Row] = []
    ks = sorted({k for group in groups for run in group.runs for k in (*run.best, *run.last)})
    for number, group in enumerate(groups, 1):
        runs = group.runs
        row: Row = {
            "group": number,
            "n": len(runs),
            "experiment": runs[0].experiment,
            "dataset": nested(runs[0].config, "dataset", "name"),
            "seeds": ", ".join(str(run.config.get("seed")) for run in runs),
        }
        if any(group.num_repeats for group in groups):
            row["repeats left out"] = group.num_repeats
        sides: dict[str, list[Recalls]] = {"best": [run.best for run in runs], "last": [run.last for run in runs]}
        for side, recalls in sides.items():
            for k in ks:
                values = [recall[k] for recall in recalls if k in recall]
                row[f"R@{k} {side}"] = as_cell(mean(values), stdev(values)) if len(values) == len(runs) else None
        rows.append(row)
    return rows


def ranking_rows(runs: Sequence[Run]) -> list[Row]:
    """One row for each ranking of each evaluation that has several."""
    evaluations = [run for run in runs if len(run.rankings) > 1]
    names = {name for run in evaluations for row in run.rankings.values() for name in row}
    ordered = sorted(names, key=lambda name: (_position(name, (*MEASURES, GAIN)), natural_key(name)))
    return [
        {"folder": run.folder, "ranking": ranking, **{name: row.get(name) for name in ordered}}
        for run in evaluations
        for ranking, row in sorted(run.rankings.items(), key=lambda item: _position(item[0], RANKINGS))
    ]


def _position(name: str, order: Sequence[str]) -> int:
    """The position of a name in `order`, -1 for an unknown name."""
    return order.index(name) if name in order else -1


def as_csv(runs: Sequence[Run]) -> str:
    """One line per run, durations in seconds; a run of a group also carries the group's n, means and deviations."""
    groups = group_runs(runs)
    statistics = {}
    for row in group_rows(groups, lambda average, deviation: (average, deviation)):
        statistics[row["group"]] = {name: row[name] for name in ("n", "repeats left out") if name in row} | {
            f"{name} {statistic}": cell[i] if isinstance(cell, tuple) else None
            for name, cell in row.items()
            if name.startswith("R@")
            for i, statistic in enumerate(("mean", "sd"))
        }
    rows = [row | statistics.get(row["group"], {}) for row in run_rows(runs, groups)]
    for row in rows:
        duration = row.pop("duration")
        row["duration_s"] = round(duration.total_seconds()) if isinstance(duration, timedelta) else None
    header = list(dict.fromkeys(name for row in rows for name in row))
    text = StringIO()
    writer = csv.DictWriter(text, header, lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {name: value if value is None else printable(value) for name, value in row.items()} for row in rows
    )
    return text.getvalue()


def as_tables(
    runs: Sequence[Run],
    table: Callable[[list[Row]], str],
    heading: str = "",
    escaped: Callable[[str], str] = str,
) -> str:
    """Runs, groups, rankings, and the problems of runs. `table` formats a table, `heading` precedes each title, and
    `escaped` is applied to each problem."""
    groups = group_runs(runs)
    parts = [table(run_rows(runs, groups))]
    if groups:
        rows = group_rows(groups, lambda average, deviation: f"{average:.2f} ± {deviation:.2f}")
        parts += [heading + "Runs that differ only in their seed: mean ± sample standard deviation", table(rows)]
    if rankings := ranking_rows(runs):
        parts += [heading + "Rankings of evaluations, in %, with the 95 % interval of the change", table(rankings)]
    if unread := problem_lines(runs):
        parts += [heading + "Could not be read", "\n".join(f"- {escaped(line)}" for line in unread)]
    return "\n\n".join(parts) + "\n"


def fixed_table(rows: list[Row]) -> str:
    """A `text_table` of the columns in TEXT_COLUMNS."""
    return text_table([{name: value for name, value in row.items() if name in TEXT_COLUMNS} for row in rows])


def problem_lines(runs: Sequence[Run]) -> list[str]:
    """A line for each run with problems."""
    return [printable(f"{run.folder}: {'; '.join(run.problems)}") for run in runs if run.problems]
