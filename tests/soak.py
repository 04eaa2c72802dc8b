"""`make soak`: runs that are killed, signalled or started twice, an index that is killed beside its reader, and 10,000
damaged files per reader."""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
from tqdm import tqdm

from tests import ROOT
from tests.conftest import TINY, draw_photo
from tests.fuzz import READERS
from tests.soak_index import kills_beside_a_reader
from utils import pickle_save
from utils.text import text_table

KILLS = 20
FUZZED = 10_000
SHOWN = 20  # failures of a trial
SETTINGS = {  # of trainings, by kind
    "global": ("model.dropout=0.3",),
    "global bf16": ("precision=bf16",),
    "rerank": ("model.ert_dropout=0.3",),
    "rerank fp16": ("precision=fp16",),
    "rerank micro_batch": ("micro_batch=3",),
    "rerank frozen_views": ("model.freeze_backbone=True", "frozen_views=2"),
}
Outcome = tuple[bool, str]  # whether it passed, and what failed


class Workshop:
    """A folder with photos and neighbour files, and the commands that train a narrow network on them."""

    def __init__(self, folder: Path):
        self.folder, self.number = folder, 0
        self.uninterrupted: dict[tuple[str, bool], tuple[tuple, float]] = {}
        for name, classes in (("train", range(6)), ("test", range(6, 11))):
            lines = []
            for number in classes:
                for i in range(4):
                    draw_photo(folder / "sop" / "toy_final" / f"{number}_{i}.JPG", number, i)
                    lines.append(f"toy_final/{number}_{i}.JPG,{number}")
            (folder / "sop" / f"{name}.txt").write_text("\n".join(lines))
            neighbours = [[j for j in range(len(lines)) if j != i] for i in range(len(lines))]
            pickle_save(folder / f"{name}.pkl", np.array(neighbours))

    def new_folder(self) -> Path:
        self.number += 1
        return self.folder / f"run{self.number}"

    def command(self, script: str, folder: Path, *settings: str) -> list[str]:
        """A command that writes into a folder: its results, and its run folders into `log`."""
        flags = [f"{key}={value}" for key, value in TINY.items() if not isinstance(value, dict)]
        flags += [f"{part}.{key}={value}" for part in ("dataset", "model") for key, value in TINY[part].items()]  # type: ignore[attr-defined]
        flags += [f"dataset.data_path={self.folder / 'sop'}", f"temp_dir={folder / 'out'}", *settings]
        return [sys.executable, "-m", "tests.narrow", script, "-F", str(folder / "log"), "with", *flags]

    def training(self, kind: str, folder: Path, *settings: str) -> list[str]:
        """A training of 6 epochs of 4 iterations, saved after each iteration."""
        common = ("epochs=6", "save_minutes=0", "scheduler_tau=[1]", "dataset.num_workers=1", *settings)
        if kind.startswith("global"):
            data: tuple[str, ...] = ("dataset.sampler=random_id", "dataset.batch_size=6", "dataset.num_iterations=4")
            return self.command("experiment_global.py", folder, *common, *data, *SETTINGS[kind])
        data = ("dataset.sampler=triplet", "dataset.batch_size=18", f"cache_nn_inds={self.folder / 'test.pkl'}")
        data += (f"dataset.train_cache_nn_inds={self.folder / 'train.pkl'}",)
        return self.command("experiment_rerank.py", folder, *common, *data, *SETTINGS[kind])

    def expected(self, kind: str, several: bool = False) -> tuple[tuple, float]:
        """The result of a training that nothing interrupts, and its seconds."""
        if (kind, several) not in self.uninterrupted:
            folder, start = self.new_folder(), time.monotonic()
            command = self.training(kind, folder)
            run(of_several(command) if several else command, check=True)
            self.uninterrupted[kind, several] = result(folder), time.monotonic() - start
        return self.uninterrupted[kind, several]


def of_several(command: list[str], *options: str) -> list[str]:
    """The command as a job of two processes, or with torchrun's options."""
    launch = options or ("--standalone", "--nproc_per_node=2")
    return [sys.executable, "-m", "torch.distributed.run", *launch, *command[1:]]


def run(command: list[str], **options) -> subprocess.CompletedProcess:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, **options)


def result(folder: Path) -> tuple:
    """What a training has come to: its checkpoint, scalars and recalls."""
    last = max((path for path in (folder / "log").iterdir() if path.name.isdigit()), key=lambda path: int(path.name))
    scalars = {
        name: (series["steps"], series["values"])
        for name, series in json.loads((last / "metrics.json").read_text()).items()
    }
    info = json.loads((last / "info.json").read_text())
    return (folder / "out" / "resnet18_sop.pt").read_bytes(), scalars, info["recall"]


def left_behind(folder: Path) -> str:
    """Processes of a run that are still there."""
    processes = [line for line in run(["ps", "-eo", "args"]).stdout.splitlines() if f"{folder}/" in line]
    return " ".join(processes)


def continued(workshop: Workshop, kind: str, folder: Path, whole: tuple, several: bool = False) -> str:
    """What is wrong with a run once it is continued to its end: nothing, if it is what was expected."""
    command = workshop.training(kind, folder, "continue_run=True")
    done = run(of_several(command) if several else command)
    if done.returncode:
        return f"exit code {done.returncode}: {done.stderr[-300:]}"
    return differences(folder, whole)


def differences(folder: Path, whole: tuple) -> str:
    """What a run has come to that was not expected, or has left behind."""
    differing = [
        name
        for name, found, expected in zip(("checkpoint", "scalars", "recalls"), result(folder), whole, strict=True)
        if found != expected
    ]
    return left_behind(folder) or f"other {differing}" * bool(differing)


def kills(workshop: Workshop) -> Iterator[Outcome]:
    """SIGKILL at a random moment, of every other run also while it is continued; the next run cleans up."""
    rng = random.Random(0)
    for number in range(KILLS):
        kind = [*SETTINGS][number % len(SETTINGS)]
        whole, length = workshop.expected(kind)
        folder = workshop.new_folder()
        for _ in range(1 + number % 2):
            process = subprocess.Popen(
                workshop.training(kind, folder, "continue_run=True"),
                cwd=ROOT,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            try:
                process.wait(rng.uniform(0.5, 1) * length)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        wrong = continued(workshop, kind, folder, whole)
        yield not wrong, f"{kind}, kill number {number}: {wrong}"


def children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def status(folder: Path) -> str:
    """Sacred's, of the first run; nothing where it was ended before it was observed."""
    file = folder / "log" / "1" / "run.json"
    return json.loads(file.read_text())["status"] if file.exists() else ""


def killed_processes(workshop: Workshop) -> Iterator[Outcome]:
    """SIGKILL of one of two ranks at a random moment: torchrun restarts both, and they resume; without restarts the run
    ends, and is continued."""
    rng, kinds = random.Random(1), ("rerank micro_batch", "rerank frozen_views", "global bf16")
    for number in range(KILLS):
        kind, restarts = kinds[number % len(kinds)], number % 2
        whole, length = workshop.expected(kind, several=True)
        folder = workshop.new_folder()
        options = ("--standalone", "--nproc_per_node=2", f"--max-restarts={3 * restarts}")
        job = subprocess.Popen(
            of_several(workshop.training(kind, folder, "continue_run=True", "timeout_minutes=1"), *options),
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        time.sleep(rng.uniform(0.4, 1) * length)
        processes, victim = children(job.pid), rng.randrange(2)
        if len(processes) == 2:
            os.kill(processes[victim], signal.SIGKILL)
        errors = job.communicate()[1]
        what = f"{kind}, kill number {number} of process {victim}: exit code {job.returncode}"
        if restarts:
            messages = " ".join(line for line in errors.splitlines() if "CommandError" in line)
            wrong = messages or "no message" if job.returncode else differences(folder, whole)
        else:
            wrong = "no exit code" * (job.returncode == 0 and status(folder) != "COMPLETED")
            wrong = wrong or continued(workshop, kind, folder, whole, several=True)
        yield not wrong, f"{what}: {wrong}"


def signals(workshop: Workshop) -> Iterator[Outcome]:
    """Each signal ends a run with its exit code and the status INTERRUPTED; continued, it comes to the same."""
    for kind in ("global", "rerank"):
        whole, _ = workshop.expected(kind)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
            folder = workshop.new_folder()
            process = subprocess.Popen(workshop.training(kind, folder), cwd=ROOT, stderr=subprocess.PIPE, text=True)
            while not (folder / "out" / "last.pt").exists() and process.poll() is None:
                time.sleep(0.05)
            process.send_signal(number)
            errors = process.communicate()[1]
            interrupted = status(folder) == "INTERRUPTED"
            ended = process.returncode == 128 + number and interrupted and "Traceback" not in errors
            wrong = left_behind(folder) or continued(workshop, kind, folder, whole)
            what = f"{kind}, {number.name}: exit code {process.returncode}, {status(folder)}"
            yield ended and not wrong, f"{what}: {wrong}"
    yield from signals_to_several(workshop)


def signals_to_several(workshop: Workshop) -> Iterator[Outcome]:
    """A signal to torchrun, to all of its group as from a terminal, or to its processes ends a job as it ends one."""
    kind = "rerank micro_batch"
    whole, _ = workshop.expected(kind, several=True)
    for number, to in ((signal.SIGTERM, "torchrun"), (signal.SIGINT, "the group"), (signal.SIGUSR1, "its processes")):
        folder = workshop.new_folder()
        job = subprocess.Popen(
            of_several(workshop.training(kind, folder)),
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        while not (folder / "out" / "last.pt").exists() and job.poll() is None:
            time.sleep(0.05)
        if to == "the group":
            os.killpg(job.pid, number)
        else:
            for process in [job.pid] if to == "torchrun" else children(job.pid):
                os.kill(process, number)
        job.wait()
        wrong = left_behind(folder) or continued(workshop, kind, folder, whole, several=True)
        passed = status(folder) == "INTERRUPTED" and not wrong
        yield passed, f"{number.name} to {to}: exit code {job.returncode}, {status(folder)}: {wrong}"


def at_once(workshop: Workshop) -> Iterator[Outcome]:
    """Two commands in one folder: one is refused, or both give what each gives by itself."""
    folder = workshop.new_folder()
    command = workshop.training("global", folder)
    trainings = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [process.communicate()[1] for process in trainings]
    codes = sorted(process.returncode for process in trainings)
    yield codes == [0, 1] and any("is being written by process" in text for text in errors), f"one temp_dir: {codes}"
    by_itself = workshop.new_folder()
    run(workshop.command("eval_global.py", by_itself))
    expected = (by_itself / "out" / "nn_inds.pkl").read_bytes()
    pair: list[subprocess.Popen]
    for setting in ("features", "dataset.image_cache"):
        shared, folders = workshop.new_folder(), [workshop.new_folder(), workshop.new_folder()]
        pair = [
            subprocess.Popen(
                workshop.command("eval_global.py", folder, f"{setting}={shared}"), cwd=ROOT, stderr=subprocess.DEVNULL
            )
            for folder in folders
        ]
        codes = [process.wait() for process in pair]
        same = all((folder / "out" / "nn_inds.pkl").read_bytes() == expected for folder in folders)
        yield codes == [0, 0] and same, f"one {setting}: {codes}"
    demo = workshop.new_folder() / "demo"
    settings = ["--unobserved", "demo", "with", f"demo_dir={demo}", "demo_products=8"]
    command = [sys.executable, str(ROOT / "prepare_data.py"), *settings]
    pair = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) for _ in range(2)]
    codes = [process.wait() for process in pair]
    yield 0 in codes and len(list(demo.rglob("*.JPG"))) == 48, f"one demo_dir: {codes}"


def fuzz_in_process(name: str) -> subprocess.CompletedProcess:
    """Damaged files, in a process that may crash."""
    script = (
        "import json, tempfile; from pathlib import Path; from tests.fuzz import fuzz\n"
        "with tempfile.TemporaryDirectory() as folder:\n"
        f"    outcomes = fuzz({name!r}, Path(folder), {FUZZED})\n"
        "print('\\n' + json.dumps(outcomes))\n"
    )
    return run([sys.executable, "-c", script])


def fuzzed(name: str, done: subprocess.CompletedProcess) -> Iterator[Outcome]:
    if done.returncode:
        yield False, f"{name}: the process ended with {done.returncode}: {done.stderr[-1000:]}"
    else:
        yield from ((True, "") for _ in range(sum(json.loads(done.stdout.splitlines()[-1]).values())))


def main() -> int:
    """Run all, print one table; the exit code is 1 where something has failed."""
    rows: list[dict] = []
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as both_cores:
        fuzzing = cache(lambda: {name: both_cores.submit(fuzz_in_process, name) for name in READERS})
        workshop = Workshop(Path(folder))
        trials: dict[str, Callable[[], Iterator[Outcome]]] = {
            "killed and continued": lambda: kills(workshop),
            "one of two processes killed": lambda: killed_processes(workshop),
            "signals": lambda: signals(workshop),
            "two commands at once": lambda: at_once(workshop),
            "an index killed beside its reader": lambda: kills_beside_a_reader(workshop.new_folder()),
        }
        for reader in READERS:
            trials[f"damaged files: {reader}"] = lambda name=reader: fuzzed(name, fuzzing()[name].result())  # type: ignore[misc]
        for title, trial in trials.items():
            began, passed, failed = time.monotonic(), 0, 0
            for is_good, why in tqdm(trial(), title, unit="trial"):
                passed, failed = passed + is_good, failed + (not is_good)
                if not is_good and failed <= SHOWN:
                    tqdm.write(f"failed: {why}")
            minutes = round((time.monotonic() - began) / 60, 1)
            rows.append({"trial": title, "passed": passed, "failed": failed, "minutes": minutes})
    print(text_table(rows))
    return int(any(row["failed"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
