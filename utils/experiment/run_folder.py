"""Sacred's run folder (`-F`), written atomically, and the error that ends a command with its message alone."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sacred.observers import FileStorageObserver, file_storage
from sacred.serializer import flatten
from sacred.stdout_capturing import CapturedStdout
from sacred.utils import SacredError

from utils.errors import InputError
from utils.io.atomic import atomic_write, remove_leftovers
from utils.settings import expand_home


class CommandError(SacredError):
    """Ends a command with its message alone; Sacred records the run as failed."""

    __module__ = "builtins"  # printed without a module's name

    def __init__(self, message: str):
        super().__init__(message, print_traceback=False)


class RunFolder(FileStorageObserver):
    """Sacred's run folder (`-F`), each file written atomically.

    Sacred itself appends to `cout.txt`, which mixes old and new states of a progress bar, and empties its other files
    before it writes them. A write that fails is repeated with the next heartbeat. If files could not be written at the
    end, the command prints its results and ends with an error. A folder that cannot be created ends it at once.
    """

    def __init__(self, basedir, *args, **kwargs):
        super().__init__(expand_home(basedir), *args, **kwargs)
        self.metrics: dict[str, dict[str, list]] = {}
        self.unsaved: dict[str, str] = {}  # the error of each file that could not be written
        self.is_created = False

    def queued_event(self, ex_info, **kwargs):
        folder = ex_info["base_dir"]  # Sacred expects paths from the working folder
        sources = [(os.path.relpath(Path(folder, name)), digest) for name, digest in ex_info["sources"]]
        with self._creating():
            return super().queued_event(ex_info | {"sources": sources}, **kwargs)

    def started_event(self, **kwargs):
        with self._creating():
            run_id = super().started_event(**kwargs)
            self.save_json(self.metrics, "metrics.json")
            for folder in Path(self.basedir).iterdir():
                remove_leftovers(folder)  # temporary files of killed runs
            return run_id

    @contextmanager
    def _creating(self) -> Iterator[None]:
        """The block creates the folder; CommandError if that fails."""
        try:
            yield
        except (OSError, InputError) as error:
            raise CommandError(f"the run folder {self.basedir} (-F) cannot be written: {error}") from error
        if self.unsaved:
            raise CommandError(f"the run folder (-F) cannot be begun: {next(iter(self.unsaved.values()))}")
        self.is_created = True

    def failed_event(self, **kwargs):
        if self.run_entry is not None:  # else the folder could not be created
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
        """Sacred calls this after the run."""
        if self.is_created and self.unsaved:
            raise SystemExit(
                f"Error: the results above are right, but the run folder {self.dir} lacks the last state of "
                f"{', '.join(self.unsaved)} ({next(iter(self.unsaved.values()))})"
            )

    def _save(self, name: str, text: str) -> None:
        try:
            with atomic_write(Path(self.dir) / name) as file:
                file.write(text.encode("utf-8", "backslashreplace"))
            self.unsaved.pop(name, None)
        except InputError as error:
            self.unsaved[name] = str(error)


def copy_atomically(source: Path | str, target: Path | str) -> None:
    """Copy a file atomically; nothing happens if `target` is `source`."""
    if not (Path(target).exists() and Path(target).samefile(source)):
        with Path(source).open("rb") as content, atomic_write(target) as file:
            shutil.copyfileobj(content, file)


file_storage.FileStorageObserver = RunFolder  # type: ignore[misc]  # of -F
file_storage.copyfile = copy_atomically  # type: ignore[assignment]
# keeps what a run prints between its last heartbeat and an error
CapturedStdout.closed = property(lambda captured: captured.buffer.closed and captured.final is None)  # type: ignore[assignment,method-assign]
