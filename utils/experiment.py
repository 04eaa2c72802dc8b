"""What the five commands share: Sacred's settings, errors in one message, the device, the order of a training run."""

import hashlib
import platform
import re
from collections.abc import Callable
from functools import wraps
from pathlib import Path

import faiss
import torch
from sacred import SETTINGS, Experiment
from sacred.observers import FileStorageObserver
from sacred.run import Run
from sacred.utils import SacredError, apply_backspaces_and_linefeeds
from torch.backends import cudnn

from utils.checkpoint import num_of_trainable_params, save_checkpoint
from utils.errors import InputError, listing
from utils.memory import keep_freed_memory, peak_memory
from utils.metrics import Recalls
from utils.precision import set_precision

SETTINGS.CAPTURE_MODE = "sys"

CUDNN_FLAGS = ("benchmark", "deterministic")


class CommandError(SacredError):
    """Ends a command with its message alone; Sacred records the run as failed."""

    __module__ = "builtins"  # printed without a module's name

    def __init__(self, message: str):
        super().__init__(message, print_traceback=False)


def set_up(ex: Experiment) -> Experiment:
    """Captured output is kept as a terminal would show it."""
    ex.captured_out_filter = apply_backspaces_and_linefeeds  # type: ignore[assignment]
    ex.post_run_hook(note_memory)
    ex.post_run_hook(write_output_anew)
    return ex


def note_memory(_run: Run) -> None:
    """Note the most memory that the process, and its tensors on a GPU, held, in GB; its workers are not counted."""
    _run.info["peak_memory_gb"] = round(peak_memory() / 1e9, 2)
    if torch.cuda.is_available():
        _run.info["peak_cuda_memory_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)


def write_output_anew(_run: Run) -> None:
    """Have the observers write all output once more at the end.

    Meanwhile Sacred appends to cout.txt every ten seconds, and a bar that has moved on is mixed with what it was.
    """
    for observer in _run.observers:
        if isinstance(observer, FileStorageObserver):
            (Path(observer.dir) / "cout.txt").unlink(missing_ok=True)
            observer.cout_write_cursor = 0


def reports_errors(main: Callable) -> Callable:
    """Turn an InputError that ends a command into one message; `--debug` and `--pdb` still show where it was raised."""

    @wraps(main)
    def reporting(*args, **kwargs):
        try:
            return main(*args, **kwargs)
        except InputError as error:
            message = re.split(r"^utils\.errors\.InputError: ", str(error), flags=re.MULTILINE)[-1]
            raise CommandError(message.strip()) from error  # without the traceback of a loader's worker

    return reporting


def begin_run(run: Run, cpu: bool, cudnn_flag: str, precision: str | None) -> tuple[torch.device, torch.dtype]:
    """The device, `cuda:0`, or the CPU when asked for or without CUDA, and the number format to compute in.

    Sets cuDNN's flag, notes versions and keeps freed memory. InputError for an unknown flag or precision.
    """
    if cudnn_flag not in CUDNN_FLAGS:
        raise InputError(f"cudnn_flag={cudnn_flag!r} is unknown: choose from {listing(CUDNN_FLAGS)}")
    setattr(cudnn, cudnn_flag, True)
    run.info["versions"] = {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
        "faiss": faiss.__version__,
    }
    if not cpu and not torch.cuda.is_available():
        print("no CUDA device was found: running on the CPU")
    keep_freed_memory()
    device = torch.device("cpu" if cpu or not torch.cuda.is_available() else "cuda:0")
    return device, set_precision(precision, device)


def note_files(run: Run, *paths: Path | str | None) -> None:
    """Note the MD5 sums of a run's files under `info['md5']`."""
    for path in paths:
        if path is not None:
            with Path(path).open("rb") as file:
                run.info.setdefault("md5", {})[str(path)] = hashlib.file_digest(file, "md5").hexdigest()


def report_recalls(run: Run, recalls: Recalls, columns: int, title: str = "", best: bool = True) -> None:
    """Print recalls, saying so where a K exceeds the columns of neighbours; the `best` go to `info['recall']`."""
    beyond = [k for k in recalls if k > columns]
    note = f" (K = {listing(beyond)} counts over the {columns} neighbours there are)" if beyond else ""
    print(f"{title}{recalls}{note}")
    if best:
        run.info["recall"] = {str(k): recall for k, recall in recalls.items()}


def fit(
    run: Run,
    model,
    optimizer,
    scheduler,
    train: Callable[[int], None],
    validate: Callable[[], tuple],
    epochs: int,
    cudnn_flag: str,
    checkpoint: Path,
) -> float:
    """Validate, then train and validate `epochs` times; returns the best R@1.

    `train(epoch)` is one epoch, `validate()` returns what the metric functions do. Whenever R@1 is not below the best
    so far, the states are saved as `checkpoint` and the recalls noted; `val.recall@K` is logged at step epoch + 1.
    """
    print(f"trainable parameters: {num_of_trainable_params(model):,}")
    best: float | None = None
    for epoch in range(-1, epochs):
        if epoch >= 0:
            cudnn.benchmark = cudnn_flag == "benchmark"
            train(epoch)
        cudnn.benchmark = False
        recalls, _, positions = validate()
        for k, recall in recalls.items():
            run.log_scalar(f"val.recall@{k}", recall, epoch + 1)
        improved = best is None or recalls[1] >= best
        title = f"Validation [{epoch:03d}] " if epoch >= 0 else "Validation before training "
        report_recalls(run, recalls, positions.shape[1], title, improved)
        if improved:
            best = recalls[1]
            save_checkpoint(checkpoint, model, optimizer, scheduler)
    note_files(run, checkpoint)
    run.add_artifact(str(checkpoint))
    assert best is not None
    return best
