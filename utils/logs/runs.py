"""What a Sacred run folder says about a run: its recalls, curves, duration and status."""

import os
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from utils.errors import InputError
from utils.logs.json_reader import curve, nested, number, read_json, read_text, time
from utils.logs.recalls import Recalls, best_recalls, read_rankings, read_validations, recorded_recalls
from utils.text import natural_key, shortened

SACRED_FILES = {"run.json", "config.json", "info.json", "metrics.json", "cout.txt"}
SILENCE = timedelta(minutes=5)  # Sacred's heartbeat comes every ten seconds
# raised where a file of a run folder is valid JSON, but not what Sacred writes
UNEXPECTED = (OSError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RecursionError)


@dataclass(frozen=True)
class Run:
    """One run; unknown values are None. `problems` lists missing artifacts, or says why the run is unreadable.

    `status` is Sacred's, but STALE where Sacred says RUNNING and the last heartbeat is over five minutes old, and
    UNREADABLE where the files are not what Sacred writes; `folder` and `problems` are all that is then known. Epoch 0
    is before training. `losses` are (epoch, train.loss) of each iteration, `validations` the recalls after each epoch.
    """

    folder: Path
    status: str
    problems: list[str]
    experiment: object = None
    script: object = None
    config: dict = field(default_factory=dict)
    run_id: object = None  # the same for all parts of a continued training
    start: datetime | None = None
    duration: timedelta | None = None
    memory: float | None = None  # the process's peak, in GB
    device: object = None  # the GPU's name, or 'cpu'
    # of an evaluation: measures in %, and the change at R@1, by ranking
    rankings: dict[str, dict[str, object]] = field(default_factory=dict)
    losses: list[tuple[float, float]] = field(default_factory=list)
    validations: dict[int, Recalls] = field(default_factory=dict)
    best: Recalls = field(default_factory=dict)
    last: Recalls = field(default_factory=dict)
    best_epoch: int | None = None


def find_run_folders(folder: Path) -> list[Path]:
    """The Sacred run folders in `folder`, itself included, in natural order; links to folders are not followed.

    Empty folders whose name is a number count too, and folders that may not be read.
    """
    run_folders = []

    def add_unreadable(error: OSError) -> None:
        if isinstance(error, PermissionError):
            run_folders.append(Path(error.filename))

    for path, folders, files in os.walk(folder, onerror=add_unreadable):
        if SACRED_FILES.intersection(files) or (Path(path).name.isdecimal() and not folders and not files):
            run_folders.append(Path(path))
    return sorted(run_folders, key=lambda path: natural_key(str(path)))


def read_run(folder: Path, now: datetime | None = None) -> Run:
    """Read a run folder of these commands or of the published ones; any other is UNREADABLE, with one problem.

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
    for name in ("run.json", "config.json"):
        if not os.path.lexists(folder / name):
            raise InputError(f"{name} is missing")
    entry, config = read_json(folder / "run.json"), read_json(folder / "config.json")
    info, metrics = read_json(folder / "info.json"), read_json(folder / "metrics.json")
    validations = read_validations(metrics, read_text(folder / "cout.txt"))
    recorded = recorded_recalls(info)
    if "epochs" in config or any(epoch > 0 for epoch in validations):
        best, best_epoch = best_recalls(recorded, validations, curve(metrics, "val.mAP@R"))
        last = validations[max(validations)] if validations else {}
    else:
        best, best_epoch = validations.get(0, {}) | recorded, None
        last = best
    start, stop, heartbeat = (time(entry, name) for name in ("start_time", "stop_time", "heartbeat"))
    end, memory = stop or heartbeat, nested(info, "peak_memory_gb")
    return Run(
        folder=folder,
        status=_status(entry, heartbeat or start, now),
        problems=[f"artifact {name} is missing" for name in entry.get("artifacts", ()) if not (folder / name).exists()],
        experiment=nested(entry, "experiment", "name"),
        script=nested(entry, "experiment", "mainfile"),
        config=config,
        run_id=nested(info, "run_id"),
        start=start,
        duration=end - start if start and end else None,
        memory=None if memory is None else number(memory),
        device=nested(info, "versions", "device"),
        rankings=read_rankings(info),
        losses=curve(metrics, "train.loss"),
        validations=validations,
        best=best,
        last=last,
        best_epoch=best_epoch,
    )


def _status(entry: dict, heartbeat: datetime | None, now: datetime) -> str:
    status = str(entry.get("status", "UNKNOWN"))
    is_silent = heartbeat is None or now - heartbeat > SILENCE
    return "STALE" if status == "RUNNING" and is_silent else status
