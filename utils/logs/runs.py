"""What a Sacred run folder says about a run: its recalls, curves, duration and status."""

import json
import math
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

Recalls = dict[int, float]  # K → recall in %

SACRED_FILES = {"run.json", "config.json", "info.json", "metrics.json", "cout.txt"}
SILENCE = timedelta(minutes=5)  # Sacred's heartbeat comes every ten seconds

NUMBER = r"(?:(?:np|numpy)\.\w+\()?(\d+(?:\.\d+)?)\)?"
PRINTED = re.compile(
    rf"(?:Training|Validation)\s+\[(?P<epoch>\d+)\]|(?P<recalls>\{{\s*\d+:\s*{NUMBER}(?:,\s*\d+:\s*{NUMBER})*\s*\}})"
)


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
    """The Sacred run folders in `folder`, itself included, in natural order.

    Empty folders with a number as their name count too, and those that may not be entered.
    """
    found = []

    def note(error: OSError) -> None:
        if isinstance(error, PermissionError):
            found.append(Path(error.filename))

    for path, folders, files in os.walk(folder, onerror=note):
        if SACRED_FILES & set(files) or (Path(path).name.isdecimal() and not folders and not files):
            found.append(Path(path))
    return sorted(found, key=lambda path: natural(str(path)))


def natural(text: str) -> list:
    """A sort key under which numbers in a text go by their value."""
    return [(int(part), "") if part.isdecimal() else (math.inf, part) for part in re.split(r"(\d+)", text)]


def read_run(folder: Path, now: datetime | None = None) -> Run:
    """Read a run folder, ours or the published ones; never raises for what is missing or damaged in it.

    `now` (default: the clock) decides whether a heartbeat is old.
    """
    problems: list[str] = []
    entry, config = (_read_json(folder / name, problems, needed=True) for name in ("run.json", "config.json"))
    info, metrics = (_read_json(folder / name, problems) for name in ("info.json", "metrics.json"))
    validations = _validations(metrics, _read_text(folder / "cout.txt", problems) or "")
    recorded = _recorded_recalls(info)
    if "epochs" in config or not config or any(epoch > 0 for epoch in validations):
        best, best_epoch = _best(recorded, validations)
        last = validations[max(validations)] if validations else {}
    else:
        best, best_epoch = validations.get(0, {}) | recorded, None
        last = best
    start, stop, beat = (_time(entry.get(name)) for name in ("start_time", "stop_time", "heartbeat"))
    end = stop or beat
    return Run(
        folder=folder,
        status=_status(entry, config, beat or start, now or datetime.now(UTC)),
        experiment=nested(entry, "experiment", "name"),
        script=nested(entry, "experiment", "mainfile"),
        config=config,
        start=start,
        duration=end - start if start and end else None,
        memory=_number(nested(info, "peak_memory_gb")),
        device=nested(info, "versions", "device"),
        rankings=_rankings(info),
        losses=_curve(metrics, "train.loss"),
        validations=validations,
        best=best,
        last=last,
        best_epoch=best_epoch,
        problems=problems,
    )


def nested(node: object, *keys: str) -> object:
    """The value under nested keys, None where there is no such one."""
    for key in keys:
        node = node.get(key) if isinstance(node, dict) else None
    return node


def _read_text(path: Path, problems: list[str], needed: bool = False) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        if needed:
            problems.append(f"{path.name} is missing")
    except OSError as error:
        problems.append(f"{path.name}: {error.strerror or error}")
    return None


def _read_json(path: Path, problems: list[str], needed: bool = False) -> dict:
    text = _read_text(path, problems, needed)
    if text is None:
        return {}
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        problems.append(f"{path.name} is {f'no valid JSON ({error})' if text.strip() else 'empty'}")
        return {}
    if not isinstance(content, dict):
        problems.append(f"{path.name} holds no JSON object")
        return {}
    return content


def _status(entry: dict, config: dict, sign_of_life: datetime | None, now: datetime) -> str:
    if not entry:
        return "UNKNOWN" if config else "UNREADABLE"
    status = str(entry.get("status", "UNKNOWN"))
    silent = sign_of_life is None or now - sign_of_life > SILENCE
    return "STALE" if status == "RUNNING" and silent else status


def _time(text: object) -> datetime | None:
    """A time as Sacred writes it: UTC, without saying so."""
    try:
        time = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _number(node: object) -> float | None:
    """A finite number, plain or as jsonpickle encodes a numpy one; None for anything else."""
    value = nested(node, "value") if isinstance(node, dict) else node
    plain = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if plain else None  # type: ignore[return-value]


def _curve(metrics: dict, name: str) -> list[tuple[float, float]]:
    """(step, value) of a logged scalar, in order of the steps."""
    steps, values = nested(metrics, name, "steps"), nested(metrics, name, "values")
    if not isinstance(steps, list) or not isinstance(values, list):
        return []
    points = ((_number(step), _number(value)) for step, value in zip(steps, values, strict=False))
    return sorted((step, value) for step, value in points if step is not None and value is not None)


def _validations(metrics: dict, printed: str) -> dict[int, Recalls]:
    """Recalls by epochs trained: as logged, and as printed where they were not logged."""
    validations: dict[int, Recalls] = {}
    epoch = 0
    for match in PRINTED.finditer(printed):
        if match["epoch"]:
            epoch = int(match["epoch"]) + 1
        else:  # of 'cosine' and 'l2' the first: on normalised descriptors they are the same
            recalls = validations.setdefault(epoch, {})
            for k, recall in re.findall(rf"(\d+):\s*{NUMBER}", match["recalls"]):
                recalls.setdefault(int(k), float(recall))
    for name in metrics:
        if logged := re.fullmatch(r"val\.recall@(\d+)", name):
            for step, recall in _curve(metrics, name):
                validations.setdefault(round(step), {})[int(logged[1])] = recall
    return {epoch: dict(sorted(validations[epoch].items())) for epoch in sorted(validations)}


def _best(recorded: Recalls, validations: dict[int, Recalls]) -> tuple[Recalls, int | None]:
    """The best recalls and their epoch, by the smallest K; of equal ones the last, as checkpoints are saved.

    The recorded ones stand alone, without an epoch, when no validation reaches them.
    """
    k = min((k for recalls in (recorded, *validations.values()) for k in recalls), default=1)
    ranked = [(round(recalls[k], 2), epoch) for epoch, recalls in validations.items() if k in recalls]
    reached, epoch = max(ranked, default=(-1.0, 0))
    reference = round(recorded.get(k, 0.0), 2)
    if reached < reference or not ranked:
        return recorded, None
    return (recorded if reached == reference else {}) | validations[epoch], epoch


def _recorded_recalls(info: dict) -> Recalls:
    """`info['recall']`: plain or encoded numbers under plain or mangled K, or twice so under 'cosine' and 'l2'.

    A number that jsonpickle wrote as a reference is taken from its twin, or from the object referred to. Objects are
    numbered as they are met, dicts included or not depending on jsonpickle's version, in an order that sorting the file
    has blurred: a reference counts only if one recall alone fits it, as recalls do not fall with K.
    """
    recall = nested(info, "recall")
    entries = [
        (int(match[1]), node)
        for mapping in (nested(recall, "cosine"), nested(recall, "l2"), recall)
        if isinstance(mapping, dict)
        for key, node in mapping.items()
        if (match := re.fullmatch(r"(?:json://)?(\d+)", key))
    ]
    stated: Recalls = {}
    for k, node in entries:
        if (value := _number(node)) is not None:
            stated.setdefault(k, value)
    recalls = dict(stated)
    tables = [list(_numbered(info, counted)) for counted in (list, (list, dict))]
    for k, node in entries:
        reference = nested(node, "py/id")
        if k not in stated and isinstance(reference, int):
            fitting = {
                table[reference]
                for table in tables
                if 0 <= reference < len(table) and table[reference] in stated.values()
                if all((value - table[reference]) * (other - k) >= 0 for other, value in stated.items())
            }
            if len(fitting) == 1:
                recalls[k] = fitting.pop()
    return dict(sorted(recalls.items()))


def _rankings(info: dict) -> dict[str, dict[str, object]]:
    """`info['measures']` with, where `info['gains']` has it, the change at R@1 and its interval in words."""
    measures = nested(info, "measures")
    rankings: dict[str, dict[str, object]] = {}
    for name, row in measures.items() if isinstance(measures, dict) else ():
        if isinstance(row, dict):
            rankings[name] = {measure: _number(value) for measure, value in row.items() if _number(value) is not None}
            gain = nested(info, "gains", name, "R@1")
            points, low, high = map(_number, gain) if isinstance(gain, list) and len(gain) == 3 else [None] * 3
            if points is not None and low is not None and high is not None:
                rankings[name]["R@1 over global"] = f"{points:+.2f} ({low:+.2f} to {high:+.2f})"
    return rankings


def _numbered(node: object, counted: type | tuple[type, ...]) -> Iterator:
    """The objects to which jsonpickle gives numbers, in order: the value of an encoded number, None for others."""
    if isinstance(node, dict) and "py/object" in node:
        yield _number(node)
        return
    if isinstance(node, counted):
        yield None
    children: Iterable = node if isinstance(node, list) else ()
    if isinstance(node, dict):
        children = (node[key] for key in sorted(node, key=natural))
    for child in children:
        yield from _numbered(child, counted)
