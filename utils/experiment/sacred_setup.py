"""Sacred in the five commands: its settings, its command line, and the end of a command by an error or a signal."""

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
from utils.experiment.setting_names import usage
from utils.runtime.memory import peak_memory
from utils.runtime.output import exit_code, unfailing_output
from utils.runtime.ranks import is_main_process, rank, silence_other_ranks
from utils.runtime.signals import ended_by_signals
from utils.settings import SEED, check_settings, expand_home

SETTINGS.CAPTURE_MODE = "sys"
SETTINGS.DISCOVER_SOURCES = "sys"  # all modules of the project, not only those that the command itself imports
# git is run once per folder instead of once per module, and paths are resolved once: this saves seconds
commit_of = cache(dependencies.get_commit_if_possible)
dependencies.get_commit_if_possible = lambda file, wanted: commit_of(str(Path(file).parent / "any"), wanted)
dependencies.is_local_source = cache(dependencies.is_local_source)
# all settings of command line and files pass here, before config hooks, which may not change them
distribute_updates = initialize.distribute_config_updates
initialize.distribute_config_updates = lambda prefixes, scaffolding, updates: distribute_updates(
    prefixes, scaffolding, expand_home(updates)
)


def set_up(ex: Experiment, is_distributed: bool = True) -> Experiment:
    """Set up an experiment: output is captured as a terminal shows it, and the run's peak memory is noted.

    `is_distributed`: several ranks may run its main function, of which rank 0 observes and prints.
    """
    ex.run_commandline = partial(run_commandline, ex)  # type: ignore[method-assign]
    ex.get_usage = partial(usage, ex)  # type: ignore[method-assign]
    ex.captured_out_filter = apply_backspaces_and_linefeeds  # type: ignore[assignment]
    ex.config_hook(check_seed_and_ranks)
    if is_distributed:
        ex.config_hook(partial(silence_ranks, ex))
    ex.post_run_hook(note_memory)
    return ex


def run_commandline(ex: Experiment, argv: Sequence[str] | None = None):
    """Sacred's `run_commandline`, with an stdout that never fails.

    A command that has written its files has succeeded even if its output was lost, since the run folder has the output,
    and batch scripts go on by the exit code. A command that only prints has failed.
    """
    words = list(sys.argv if argv is None else argv)
    if words[1:2] == ["help"] and words[2:] and words[2] not in dict(ex.gather_commands()):
        del words[1]  # Sacred then lists the commands
    with unfailing_output() as lost:
        run = Experiment.run_commandline(ex, words)
        if run and run.main_function.unobserved and (code := exit_code(lost())):  # such as print_config
            sys.exit(code)
        return run


def check_seed_and_ranks(config: dict, command_name: str, logger) -> dict:
    """CommandError for an invalid seed, with which Sacred draws before the command begins, and for invalid ranks."""
    try:
        check_settings({"seed": 0} | config, {"seed": SEED})
        rank()
    except InputError as error:
        raise CommandError(str(error)) from error
    return {}


def silence_ranks(ex: Experiment, config: dict, command_name: str, logger) -> dict:
    """Have rank 0 alone print and observe."""
    if command_name == ex.default_command and not is_main_process():
        silence_other_ranks()
        file_storage.FileStorageObserver = lambda *args, **kwargs: RunObserver()  # type: ignore[misc,assignment]
    return {}


def note_memory(_run: Run) -> None:
    """Note the peak memory of the process, without its workers, in GB."""
    _run.info["peak_memory_gb"] = round(peak_memory() / 1e9, 2)


def reports_errors(main: Callable) -> Callable:
    """Report a ReportedError that ends a command as its message alone; `--debug` and `--pdb` show the traceback.

    A signal ends the command without a traceback, too; Sacred records the run as interrupted.
    """

    @wraps(main)
    def reporting(*args, **kwargs):
        try:
            with ended_by_signals():
                return main(*args, **kwargs)
        except ReportedError as error:
            message = re.split(r"^utils\.errors\.InputError: ", str(error), flags=re.MULTILINE)[-1]
            prefix = "" if is_main_process() else f"rank {rank()}: "
            raise CommandError(prefix + message.strip()) from error  # without the traceback of a loader's worker
        except Exception as error:
            if not is_main_process():
                error.add_note(f"on rank {rank()}")
            raise

    return reporting
