"""What is Sacred's in the five commands: its settings, and errors that end a command in one message."""

import re
from collections.abc import Callable
from functools import wraps
from pathlib import Path

from sacred import SETTINGS, Experiment
from sacred.observers import FileStorageObserver
from sacred.run import Run
from sacred.utils import SacredError, apply_backspaces_and_linefeeds

from utils.errors import ReportedError
from utils.memory import peak_memory

SETTINGS.CAPTURE_MODE = "sys"


class CommandError(SacredError):
    """Ends a command with its message alone; Sacred records the run as failed."""

    __module__ = "builtins"  # printed without a module's name

    def __init__(self, message: str):
        super().__init__(message, print_traceback=False)


def set_up(ex: Experiment) -> Experiment:
    """Captured output is kept as a terminal would show it, and the run's memory is noted."""
    ex.captured_out_filter = apply_backspaces_and_linefeeds  # type: ignore[assignment]
    ex.post_run_hook(note_memory)
    ex.post_run_hook(write_output_anew)
    return ex


def note_memory(_run: Run) -> None:
    """Note the most memory that the process held, in GB; its workers are not counted."""
    _run.info["peak_memory_gb"] = round(peak_memory() / 1e9, 2)


def write_output_anew(_run: Run) -> None:
    """Have the observers write all output once more at the end.

    Meanwhile Sacred appends to cout.txt every ten seconds, and a bar that has moved on is mixed with what it was.
    """
    for observer in _run.observers:
        if isinstance(observer, FileStorageObserver):
            (Path(observer.dir) / "cout.txt").unlink(missing_ok=True)
            observer.cout_write_cursor = 0


def reports_errors(main: Callable) -> Callable:
    """Turn an error of ours that ends a command into one message; `--debug` and `--pdb` still show where it arose."""

    @wraps(main)
    def reporting(*args, **kwargs):
        try:
            return main(*args, **kwargs)
        except ReportedError as error:
            message = re.split(r"^utils\.errors\.InputError: ", str(error), flags=re.MULTILINE)[-1]
            raise CommandError(message.strip()) from error  # without the traceback of a loader's worker

    return reporting
