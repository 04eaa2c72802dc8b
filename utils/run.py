"""What the four commands that compute do around their work: the device, the run's files and recalls, training."""

import hashlib
import platform
from collections.abc import Callable
from functools import partial
from pathlib import Path

import faiss
import torch
from torch.backends import cudnn

from utils.errors import InputError, listing
from utils.memory import keep_freed_memory
from utils.precision import set_precision
from utils.steps import Step
from utils.training import TrainingState, fit

CUDNN_FLAGS = ("benchmark", "deterministic")


def begin_run(_run, cpu: bool, cudnn_flag: str, precision: str | None) -> tuple[torch.device, torch.dtype]:
    """The device, `cuda:0`, or the CPU when asked for or without CUDA, and the number format to compute in.

    Sets cuDNN's flag, notes versions and keeps freed memory. InputError for an unknown flag or precision.
    """
    if cudnn_flag not in CUDNN_FLAGS:
        raise InputError(f"cudnn_flag={cudnn_flag!r} is unknown: choose from {listing(CUDNN_FLAGS)}")
    setattr(cudnn, cudnn_flag, True)
    _run.info["versions"] = {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
        "faiss": faiss.__version__,
    }
    keep_freed_memory()
    device = torch.device("cpu" if cpu or not torch.cuda.is_available() else "cuda:0")
    _run.info["versions"]["device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    if device.type == "cuda":
        _run.post_run_hooks.append(partial(note_cuda_memory, _run))
    elif not cpu:
        print("no CUDA device was found: running on the CPU")
    return device, set_precision(precision, device)


def note_cuda_memory(run) -> None:
    """Note the most memory that tensors held on the GPU, in GB."""
    run.info["peak_cuda_memory_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)


def note_files(run, *paths: Path | str | None) -> None:
    """Note the MD5 sums of a run's files under `info['md5']`."""
    for path in paths:
        if path is not None:
            with Path(path).open("rb") as file:
                run.info.setdefault("md5", {})[str(path)] = hashlib.file_digest(file, "md5").hexdigest()


def report_recalls(run, recalls: dict[int, float], columns: int, title: str = "", best: bool = True) -> None:
    """Print recalls, saying so where a K exceeds the columns of neighbours; `best` ones go to `info['recall']`."""
    beyond = [k for k in recalls if k > columns]
    note = f" (K = {listing(beyond)} counts over the {columns} neighbours there are)" if beyond else ""
    print(f"{title}{recalls}{note}")
    if best:
        run.info["recall"] = {str(k): recall for k, recall in recalls.items()}


def run_training(
    _run,
    _config: dict,
    epochs: int,
    cudnn_flag: str,
    temp_dir: str,
    state: TrainingState,
    step: Step,
    loader,
    validate: Callable[[], tuple],
) -> float:
    """`utils.training.fit`, logged to the run. The best state, its artifact: `<temp_dir>/<arch>_<dataset name>.pt`."""
    checkpoint = Path(temp_dir) / f"{_config['model']['arch']}_{_config['dataset']['name']}.pt"
    best = fit(
        state,
        step,
        loader,
        validate,
        epochs,
        log=_run,
        report=partial(report_recalls, _run),
        checkpoint=checkpoint,
        autotune=cudnn_flag == "benchmark",
    )
    note_files(_run, checkpoint)
    _run.add_artifact(str(checkpoint))
    return best
