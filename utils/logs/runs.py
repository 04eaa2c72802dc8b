"""What a Sacred run folder says about a run: its recalls, curves, duration and status."""

import hashlib
import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from utils.logs.json_reader import RunFiles, curve, nested, noted_number, time
from utils.logs.recalls import Recalls, best_recalls, read_rankings, read_validations, recorded_recalls
from utils.text import natural_key

SACRED_FILES = {"run.json", "config.json", "info.json", "metrics.json", "cout.txt"}
SILENCE = timedelta(minutes=5)  # Sacred's heartbeat comes every ten seconds
LONGEST_RUN = timedelta(days=3650)
LARGEST_LOSS = 3.4e38  # of float32; a mean of a few at float64's end would overflow, and so would a panel's axis
LARGEST_MEMORY = 1e6  # GB


@dataclass(frozen=True)
class Run:
    """One run; `problems` says what could not be read of its folder, None stands for what is not known.

    Epochs count those trained: 0 is before training. `losses` are (epoch, train.loss) for each iteration, its epoch a
    fraction; `validations` the recalls after each epoch. `status` is Sacred's, or UNKNOWN without a readable run.json,
    STALE when it says RUNNING but the last heartbeat is over five minutes old, UNREADABLE when nothing is known.
    """

    folder: Path
    status: str
    experiment: object
    script: object
    config: dict
    run_id: object  # of a training: the parts of one that was continued share it
    start: datetime | None
    duration: timedelta | None
    memory: float | None  # the process's peak, in GB
    device: object  # the GPU's name, or 'cpu'
    rankings: dict[str, dict[str, object]]  # of an evaluation: measures in %, and points gained at R@1, by ranking
    losses: list[tuple[float, float]]
    validations: dict[int, Recalls]
    best: Recalls
    last: Recalls
    best_epoch: int | None
    problems: list[str]


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
    """Read a run folder, ours or the published ones; never raises for what is missing, damaged or absurd in it.

    `now` (default: the clock) decides whether a heartbeat is old.
    """
    files = RunFiles(folder)
    entry, config = (files.json(name, needed=True) for name in ("run.json", "config.json"))
    info, metrics = (files.json(name) for name in ("info.json", "metrics.json"))
    has_begun = bool(entry) and entry.get("status") != "QUEUED"
    validations = read_validations(files, metrics, files.text("cout.txt", needed=has_begun) or "")
    recorded = recorded_recalls(files, info)
    if "epochs" in config or not config or any(epoch > 0 for epoch in validations):
        best, best_epoch = best_recalls(recorded, validations)
        last = validations[max(validations)] if validations else {}
    else:
        best, best_epoch = validations.get(0, {}) | recorded, None
        last = best
    check_artifacts(files, entry, info)
    start, stop, beat = (time(files, entry, name) for name in ("start_time", "stop_time", "heartbeat"))
    return Run(
        folder=folder,
        status=_status(entry, config, beat or start, now or datetime.now(UTC)),
        experiment=nested(entry, "experiment", "name"),
        script=nested(entry, "experiment", "mainfile"),
        config=config,
        run_id=nested(info, "run_id"),
        start=start,
        duration=_duration(files, start, stop or beat),
        memory=noted_number(files, "info.json: peak_memory_gb", nested(info, "peak_memory_gb"), 0, LARGEST_MEMORY),
        device=nested(info, "versions", "device"),
        rankings=read_rankings(files, info),
        losses=curve(files, metrics, "train.loss", -LARGEST_LOSS, LARGEST_LOSS),
        validations=validations,
        best=best,
        last=last,
        best_epoch=best_epoch,
        problems=list(files.problems),
    )


def _status(entry: dict, config: dict, sign_of_life: datetime | None, now: datetime) -> str:
    if not entry:
        return "UNKNOWN" if config else "UNREADABLE"
    status = str(entry.get("status", "UNKNOWN"))
    silent = sign_of_life is None or now - sign_of_life > SILENCE
    return "STALE" if status == "RUNNING" and silent else status


def _duration(files: RunFiles, start: datetime | None, end: datetime | None) -> timedelta | None:
    if start is None or end is None:
        return None
    if not timedelta(0) <= end - start <= LONGEST_RUN:
        files.note(f"run.json: no run can last from {start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M}")
        return None
    return end - start


LARGEST_CHECKED = 64_000_000  # bytes: their MD5 sum takes a tenth of a second


def check_artifacts(files: RunFiles, entry: dict, info: dict) -> None:
    """Note listed artifacts that are missing, and those that differ from each MD5 sum noted for a file of their name.

    A large file's sum is not checked.
    """
    artifacts, noted = nested(entry, "artifacts"), nested(info, "md5")
    sums: dict[str, list[object]] = {}
    for path, digest in noted.items() if isinstance(noted, dict) else ():
        sums.setdefault(Path(path).name, []).append(digest)
    for name in artifacts if isinstance(artifacts, list) else ():
        if isinstance(name, str):
            problem = _problem(files.folder / name, sums.get(Path(name).name))
            if problem:
                files.note(f"artifact {name} {problem}")


def _problem(artifact: Path, sums: list[object] | None) -> str | None:
    try:
        if not artifact.is_file():
            return "is missing"
        if sums and artifact.stat().st_size <= LARGEST_CHECKED:
            with artifact.open("rb") as file:
                if hashlib.file_digest(file, "md5").hexdigest() not in sums:
                    return "is not the file whose MD5 sum info.json names"
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    return None
