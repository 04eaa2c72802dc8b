"""What is Sacred's in the five commands: its settings, its command line, and how errors and signals end a command."""

import re
import sys
from collections.abc import Callable, Sequence
from functools import cache, partial, wraps
from pathlib import Path

from sacred import SETTINGS, Experiment, dependencies, initialize
from sacred.observers import RunObserver, file_storage
from sacred.run import Run
from sacred.utils import apply_backspaces_and_linefeeds

from utils.errors import InputError, ReportedError
from utils.experiment.run_folder import CommandError
from utils.runtime.memory import peak_memory
from utils.runtime.output import exit_code, unfailing_output
from utils.runtime.ranks import is_main_process, rank, silence_other_ranks
from utils.runtime.signals import ended_by_signals
from utils.settings import SEED, check_settings, expand_home

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
