"""What a Sacred run folder says about a run: its recalls, curves, duration and status."""

import os
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from utils.errors import InputError
from utils.logs.json_reader import curve, nested, number, read_config, read_json, read_text, time
from utils.logs.recalls import Recalls, best_recalls, read_rankings, read_validations, recorded_recalls
from utils.text import natural_key, shortened

SACRED_FILES = {"run.json", "config.json", "info.json", "metrics.json", "cout.txt"}
SILENCE = timedelta(minutes=5)  # Sacred's heartbeat comes every ten seconds
LARGEST_LOSS = 3.4e38  # of float32; a mean of a few at float64's end would overflow, and so would a panel's axis
# what is raised where the content of a run's files is not what Sacred writes
UNEXPECTED = (OSError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RecursionError)


@dataclass(frozen=True)
class Run:
    """One run; None stands for what is not known, `problems` are artifacts that are missing, or why it is unreadable.

    Epochs count those trained: 0 is before training. `losses` are (epoch, train.loss) for each iteration, its epoch a
    fraction; `validations` the recalls after each epoch. `status` is Sacred's, STALE when it says RUNNING but the last
    heartbeat is over five minutes old, UNREADABLE, with the folder alone, where its files are not what Sacred writes.
    """

    folder: Path
    status: str
    problems: list[str]
    experiment: object = None
    script: object = None
    config: dict = field(default_factory=dict)
    run_id: object = None  # of a training: the parts of one that was continued share it
    start: datetime | None = None
    duration: timedelta | None = None
    memory: float | None = None  # the process's peak, in GB
    device: object = None  # the GPU's name, or 'cpu'
    # of an evaluation: measures in %, and points gained at R@1, by ranking
    rankings: dict[str, dict[str, object]] = field(default_factory=dict)
    losses: list[tuple[float, float]] = field(default_factory=list)
    validations: dict[int, Recalls] = field(default_factory=dict)
    best: Recalls = field(default_factory=dict)
    last: Recalls = field(default_factory=dict)
    best_epoch: int | None = None


def find_run_folders(folder: Path) -> list[Path]:
    """The Sacred run folders in `folder`, itself included, in natural order; links to folders are not followed.

    Empty folders with a number as their name count too, and those that may not be entered.
    """
    found, waiting = [], [folder]
    while waiting:
        path = waiting.pop()
        try:
            with os.scandir(path) as scanned:
                entries = list(scanned)
            waiting += [path / entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:
            found.append(path)
            continue
        names = {entry.name for entry in entries}
        if SACRED_FILES & names or (path.name.isdecimal() and not names):
            found.append(path)
    return sorted(found, key=lambda path: natural_key(str(path)))


def read_run(folder: Path, now: datetime | None = None) -> Run:
    """Read a run folder, ours or the published one. One that is neither is UNREADABLE, with one problem.

    `now` (default: the clock) decides whether a heartbeat is old.
    """
    try:
        return _read_run(folder, now or datetime.now(UTC))
    except InputError as error:
        problem = str(error)
    except UNEXPECTED as error:
        problem = f"it is no run of these commands: {type(error).__name__}: {error}"
    return Run(folder, "UNREADABLE", [shortened(problem, 200)])


def _read_run(folder: Path, now: datetime) -> Run:
    entry = read_json(_needed(folder / "run.json"))
    config = read_config(_needed(folder / "config.json"))
    info, metrics = read_json(folder / "info.json"), read_json(folder / "metrics.json")
    validations = read_validations(metrics, read_text(folder / "cout.txt"))
    recorded = recorded_recalls(info)
    if "epochs" in config or any(epoch > 0 for epoch in validations):
        best, best_epoch = best_recalls(recorded, validations)
        last = validations[max(validations)] if validations else {}
    else:
        best, best_epoch = validations.get(0, {}) | recorded, None
        last = best
    start, stop, beat = (time(entry, name) for name in ("start_time", "stop_time", "heartbeat"))
    end, memory = stop or beat, nested(info, "peak_memory_gb")
    return Run(
        folder=folder,
        status=_status(entry, beat or start, now),
        problems=[f"artifact {name} is missing" for name in entry.get("artifacts", ()) if not (folder / name).exists()],
        experiment=nested(entry, "experiment", "name"),
        script=nested(entry, "experiment", "mainfile"),
        config=config,
        run_id=nested(info, "run_id"),
        start=start,
        duration=end - start if start and end else None,
        memory=None if memory is None else number(memory, 0, 1e6),
        device=nested(info, "versions", "device"),
        rankings=read_rankings(info),
        losses=curve(metrics, "train.loss", -LARGEST_LOSS, LARGEST_LOSS),
        validations=validations,
        best=best,
        last=last,
        best_epoch=best_epoch,
    )


def _needed(path: Path) -> Path:
    if not path.exists() and not path.is_symlink():
        raise InputError(f"{path.name} is missing")
    return path


def _status(entry: dict, sign_of_life: datetime | None, now: datetime) -> str:
    status = str(entry.get("status", "UNKNOWN"))
    silent = sign_of_life is None or now - sign_of_life > SILENCE
    return "STALE" if status == "RUNNING" and silent else status
