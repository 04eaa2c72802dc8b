"""What the page says first: what the runs are of, their result in one sentence, and what has not ended well."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from utils.logs.json_reader import nested, read_json, time
from utils.logs.recalls import GAIN
from utils.logs.runs import Run
from utils.text import printable, shortened

LONGEST_FACT = 200  # characters
MEANINGS = {
    "FAILED": "it ended with an error",
    "INTERRUPTED": "it was stopped; `continue_run` goes on",
    "RUNNING": "it has not ended yet",
    "STALE": "it has not ended, and has been silent for five minutes",
}


def summary(runs: Sequence[Run], num_queries: Iterable[int]) -> dict[str, Any]:
    """Title, facts and result of the page; `num_queries` are those of the evaluations that are shown."""
    read = [run for run in runs if run.status != "UNREADABLE"]
    entries = [read_json(run.folder / "run.json") for run in read]
    names = _unique(_data_set(run) for run in read)
    facts = {
        "Data set": names,
        "Date": _dates(entries),
        "Commit": _unique(commit for entry in entries for commit in _commits(entry)),
        "Machine": _unique(
            part
            for run, entry in zip(read, entries, strict=True)
            for part in (nested(entry, "host", "cpu"), run.device if run.device != "cpu" else None)
        ),
        "Queries": _unique(f"{number:,}" for number in num_queries),
        "Runs": ", ".join(f"{number} {status}" for status, number in Counter(run.status for run in runs).items()),
    }
    return {
        "title": shortened(printable(f"Reranking on {names}" if names else "What the runs did"), LONGEST_FACT),
        "result": _result(read),
        "facts": [[name, shortened(printable(text), LONGEST_FACT)] for name, text in facts.items() if text],
    }


def _unique(values: Iterable[object]) -> str:
    return ", ".join(dict.fromkeys(str(value) for value in values if value))


def _data_set(run: Run) -> object:
    path = nested(run.config, "dataset", "data_path")
    return (Path(path).name if isinstance(path, str) else "") or nested(run.config, "dataset", "name")


def _dates(entries: Sequence[dict]) -> str:
    """From the first start to the last sign of life."""
    times = [time(entry, name) for entry in entries for name in ("start_time", "heartbeat", "stop_time")]
    known = sorted(moment for moment in times if moment)
    if not known:
        return ""
    first, last = known[0], known[-1]
    return f"{first:%Y-%m-%d %H:%M} to {last:{'%H:%M' if first.date() == last.date() else '%Y-%m-%d %H:%M'}} UTC"


def _commits(entry: dict) -> list[str]:
    repositories = nested(entry, "experiment", "repositories")
    return [
        f"{commit[:10]}{' and changed files' * bool(nested(repository, 'dirty'))}"
        for repository in (repositories if isinstance(repositories, list) else [])
        if isinstance(commit := nested(repository, "commit"), str)
    ]


def _result(runs: Sequence[Run]) -> str:
    """The best ranking of all evaluations beside the global one; without evaluations, the best training."""
    judged: Any = [
        (row["R@1"], name, run)
        for run in runs
        for name, row in run.rankings.items()
        if name != "global" and "R@1" in row and "R@1" in run.rankings.get("global", {})
    ]
    if judged:
        untouched = with_untouched_weights(runs)
        recall, name, run = max(judged, key=lambda part: (part[0], part[2].folder not in untouched))
        change = run.rankings[name].get(GAIN)
        text = f"By {name}, {recall:.2f} % of the queries have a photo of their product first (R@1), by global "
        text += f"{run.rankings['global']['R@1']:.2f} %" + (f": {change} points" if change else "")
        return printable(f"{text}. It is the best of {len(judged)} rankings, in {run.folder}.")
    trained = [run for run in runs if run.best_epoch is not None and 1 in run.best]
    if not trained:
        return ""
    run = max(trained, key=lambda run: run.best[1])
    return printable(
        f"The best R@1 in validation is {run.best[1]:.2f} %, after epoch {run.best_epoch} of {run.folder}."
    )


def status_lines(runs: Sequence[Run]) -> list[str]:
    """A line for each run that has not completed, and for each training without a gain."""
    lines = []
    for run in runs:
        if run.status not in ("COMPLETED", "UNREADABLE"):
            trained, epochs = max(run.validations, default=None), run.config.get("epochs")
            trace = read_json(run.folder / "run.json").get("fail_trace")
            parts = [f"{run.status}, {MEANINGS[run.status]}" if run.status in MEANINGS else run.status]
            parts += [f"{trained} of {epochs} epochs are trained"] if trained is not None and epochs else []
            parts += [str(trace[-1]).strip()] if isinstance(trace, list) and trace else []
            lines.append(f"{run.folder}: {'; '.join(parts)}")
        if is_untouched(run):
            lines.append(f"{run.folder}: untouched weights, as no epoch reached the validation before training")
    return [shortened(printable(line), 2 * LONGEST_FACT) for line in lines]


def is_untouched(run: Run) -> bool:
    """Whether the best epoch of a training is 0: the checkpoint then has the starting weights."""
    return run.best_epoch == 0 and max(run.validations, default=0) > 0


def with_untouched_weights(runs: Sequence[Run]) -> set[Path]:
    """The folders of trainings whose weights are untouched, and of evaluations of their checkpoints."""
    untouched = [run for run in runs if is_untouched(run)]
    written = {
        (path, md5) for run in untouched for path, md5 in _md5_sums(run).items() if path != run.config.get("resume")
    }
    read = [(run, str(run.config.get("resume"))) for run in runs if run.status != "UNREADABLE"]
    evaluated = {run.folder for run, path in read if (path, _md5_sums(run).get(path)) in written}
    return evaluated | {run.folder for run in untouched}


def _md5_sums(run: Run) -> dict[str, str]:
    sums = nested(read_json(run.folder / "info.json"), "md5")
    return {path: str(md5) for path, md5 in sums.items()} if isinstance(sums, dict) else {}
