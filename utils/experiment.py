"""What is Sacred's in the five commands: its settings, its run folders, and how errors and signals end a command."""

import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial, wraps
from pathlib import Path

from sacred import SETTINGS, Experiment, dependencies, initialize
from sacred.observers import FileStorageObserver, RunObserver, file_storage
from sacred.run import Run
from sacred.serializer import flatten
from sacred.stdout_capturing import CapturedStdout
from sacred.utils import SacredError, apply_backspaces_and_linefeeds

from utils.errors import InputError, ReportedError
from utils.files import atomic_write, remove_leftovers
from utils.launch import is_main_process, rank, silence_other_ranks
from utils.memory import peak_memory
from utils.output import exit_code, unfailing_output
from utils.settings import SEED, check_settings, expand_home
from utils.signals import ended_by_signals

SETTINGS.CAPTURE_MODE = "sys"
SETTINGS.DISCOVER_SOURCES = "sys"  # all modules of the project, not only those that the command itself imports
# git is asked once a folder, and not once a module, and each module's path is resolved once: it takes seconds
commit_of = cache(dependencies.get_commit_if_possible)
dependencies.get_commit_if_possible = lambda file, wanted: commit_of(str(Path(file).parent / "any"), wanted)
dependencies.is_local_source = cache(dependencies.is_local_source)
# settings come from the command line and from files past this place, before a config hook, which may not change them
distribute_updates = initialize.distribute_config_updates
initialize.distribute_config_updates = lambda prefixes, scaffolding, updates: distribute_updates(
    prefixes, scaffolding, expand_home(updates)
)


class CommandError(SacredError):
    """Ends a command with its message alone; Sacred records the run as failed."""

    __module__ = "builtins"  # printed without a module's name

    def __init__(self, message: str):
        super().__init__(message, print_traceback=False)


def set_up(ex: Experiment, is_job: bool = True) -> Experiment:
    """Captured output is kept as a terminal would show it, and the run's memory is noted.

    `is_job`: its main function is the work of a job of several processes, of which the first observes and prints.
    """
    ex.run_commandline = partial(run_commandline, ex)  # type: ignore[method-assign]
    ex.captured_out_filter = apply_backspaces_and_linefeeds  # type: ignore[assignment]
    ex.config_hook(check_start)
    if is_job:
        ex.config_hook(partial(leave_to_first, ex))
    ex.post_run_hook(note_memory)
    return ex


def run_commandline(ex: Experiment, argv: Sequence[str] | None = None):
    """Sacred's, but for what becomes of stdout.

    A command whose files are written has ended well, though its reader has gone or its log's disk is full: a batch
    script goes on by the exit code, and the run folder has all that was said. Those that only print have not.
    """
    words = list(sys.argv if argv is None else argv)
    if words[1:2] == ["help"] and words[2:] and words[2] not in dict(ex.gather_commands()):
        del words[1]  # what Sacred then says is that there is no such command, and which there are
    with unfailing_output() as lost:
        run = Experiment.run_commandline(ex, words)
        if run and run.main_function.unobserved and (code := exit_code(lost())):  # print_config and its like
            sys.exit(code)
        return run


def check_start(config: dict, command_name: str, logger) -> dict:
    """Refuse a seed that Sacred itself, which draws with it before a command begins, cannot use, and numbers of
    processes that are none."""
    try:
        check_settings({"seed": 0} | config, {"seed": SEED})
        rank()
    except InputError as error:
        raise CommandError(str(error)) from error
    return {}


def leave_to_first(ex: Experiment, config: dict, command_name: str, logger) -> dict:
    """Have the first process of a job alone print and observe."""
    if command_name == ex.default_command and not is_main_process():
        silence_other_ranks()
        file_storage.FileStorageObserver = lambda *args, **kwargs: RunObserver()  # type: ignore[misc,assignment]
    return {}


def note_memory(_run: Run) -> None:
    """Note the most memory that the process held, in GB; its workers are not counted."""
    _run.info["peak_memory_gb"] = round(peak_memory() / 1e9, 2)


def reports_errors(main: Callable) -> Callable:
    """Turn an error of ours that ends a command into one message; `--debug` and `--pdb` still show where it arose.

    Signals end it without a traceback, too; Sacred then records the run as interrupted.
    """

    @wraps(main)
    def reporting(*args, **kwargs):
        try:
            with ended_by_signals():
                return main(*args, **kwargs)
        except ReportedError as error:
            message = re.split(r"^utils\.errors\.InputError: ", str(error), flags=re.MULTILINE)[-1]
            process = "" if is_main_process() else f"process {rank()}: "
            raise CommandError(process + message.strip()) from error  # without the traceback of a loader's worker
        except Exception as error:
            if not is_main_process():
                error.add_note(f"process {rank()} of the job")
            raise

    return reporting


class RunFolder(FileStorageObserver):
    """Sacred's run folder (`-F`), each file of it whole: replaced at once, or left as it was.

    By itself Sacred appends to `cout.txt`, where a bar that has moved on is mixed with what it was, and empties its
    other files before it writes them. What cannot be written is tried again with the next heartbeat. What is lacking at
    the end ends the command with an error, after all that it has printed; a folder that cannot be begun does at once.
    """

    def __init__(self, basedir, *args, **kwargs):
        super().__init__(expand_home(basedir), *args, **kwargs)
        self.metrics: dict[str, dict[str, list]] = {}
        self.unsaved: dict[str, str] = {}  # by file: why it could not be written
        self.has_begun = False

    def queued_event(self, ex_info, **kwargs):
        folder = ex_info["base_dir"]  # Sacred looks for the sources in the working folder
        sources = [(os.path.relpath(Path(folder, name)), digest) for name, digest in ex_info["sources"]]
        with self._beginning():
            return super().queued_event(ex_info | {"sources": sources}, **kwargs)

    def started_event(self, **kwargs):
        with self._beginning():
            run_id = super().started_event(**kwargs)
            self.save_json(self.metrics, "metrics.json")
            for folder in Path(self.basedir).iterdir():
                remove_leftovers(folder)  # of runs that were killed
            return run_id

    @contextmanager
    def _beginning(self) -> Iterator[None]:
        """The block begins the folder; CommandError where it cannot."""
        try:
            yield
        except (OSError, InputError) as error:
            raise CommandError(f"the run folder {self.basedir} (-F) cannot be written: {error}") from error
        if self.unsaved:
            raise CommandError(f"the run folder (-F) cannot be begun: {next(iter(self.unsaved.values()))}")
        self.has_begun = True

    def failed_event(self, **kwargs):
        if self.run_entry is not None:  # else the folder itself has failed
            super().failed_event(**kwargs)

    def interrupted_event(self, **kwargs):
        if self.run_entry is not None:
            super().interrupted_event(**kwargs)

    def save_json(self, obj, filename):
        self._save(filename, json.dumps(flatten(obj), sort_keys=True, indent=2))

    def save_cout(self):
        self._save("cout.txt", self.cout)

    def save_file(self, filename, target_name=None):
        try:
            super().save_file(filename, target_name)
        except (OSError, InputError) as error:
            self.unsaved[target_name or Path(filename).name] = str(error)

    def log_metrics(self, metrics_by_name, info):
        for name, added in metrics_by_name.items():
            logged = self.metrics.setdefault(name, {"values": [], "steps": [], "timestamps": []})
            logged["values"] += added["values"]
            logged["steps"] += added["steps"]
            logged["timestamps"] += [time.isoformat() for time in added["timestamps"]]
        if metrics_by_name or "metrics.json" in self.unsaved:
            self.save_json(self.metrics, "metrics.json")

    def join(self):
        """Called once the run has ended."""
        if self.has_begun and self.unsaved:
            raise SystemExit(
                f"Error: what is printed above is right, but the run folder {self.dir} lacks the last state of "
                f"{', '.join(self.unsaved)} ({next(iter(self.unsaved.values()))})"
            )

    def _save(self, name: str, text: str) -> None:
        try:
            with atomic_write(Path(self.dir) / name) as file:
                file.write(text.encode("utf-8", "backslashreplace"))
            self.unsaved.pop(name, None)
        except InputError as error:
            self.unsaved[name] = str(error)


def copy_whole(source: Path | str, target: Path | str) -> None:
    """Copy a file, whole or not at all; one onto itself is left."""
    if not (Path(target).exists() and Path(target).samefile(source)):
        with Path(source).open("rb") as content, atomic_write(target) as file:
            shutil.copyfileobj(content, file)


file_storage.FileStorageObserver = RunFolder  # type: ignore[misc]  # what -F makes
file_storage.copyfile = copy_whole  # type: ignore[assignment]
# what a run prints between its last heartbeat and an error is not lost
CapturedStdout.closed = property(lambda captured: captured.buffer.closed and captured.final is None)  # type: ignore[assignment,method-assign]
