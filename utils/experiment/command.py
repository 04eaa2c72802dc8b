"""Around the four commands that compute: checked settings, lock, process group, device, notes on the run."""

import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import faiss
import torch
from torch.backends import cudnn

from utils.distributed.collectives import all_gather_object
from utils.distributed.group import process_group
from utils.errors import InputError, listing
from utils.io.disk import md5
from utils.io.lock import exclusive_lock
from utils.retrieval.measures import MAP_AT_R, Measures
from utils.runtime.device import device_errors_as_input_errors, has_gpu, own_gpu
from utils.runtime.memory import keep_freed_memory
from utils.runtime.precision import DTYPES, set_precision
from utils.runtime.ranks import is_main_process, local_rank, rank
from utils.settings import FLAG, SEED, TEXT, Rules, check_settings, number, one_of

RULES: Rules = {
    "temp_dir": TEXT,
    "cpu": FLAG,
    "cudnn_flag": one_of("benchmark", "deterministic"),
    "precision": one_of(*DTYPES, None),
    "seed": SEED,
    "timeout_minutes": number(0.1),
}


@contextmanager
def begin_run(
    rules: Mapping[str, Rules],
    _run,
    _config: dict,
    temp_dir: str,
    cpu: bool,
    cudnn_flag: str,
    precision: str | None,
    timeout_minutes: float,
) -> Iterator[tuple[torch.device, torch.dtype]]:
    """Check settings, lock `temp_dir`, join the process group, and yield the device and the dtype to compute in.

    The settings of an ingredient are checked by the `rules` under its name, the command's own by those under "". The
    device is the GPU of the local rank, or the CPU if `cpu` is set or there is no CUDA. Versions are noted. With
    "deterministic", cuDNN is deterministic, and on a GPU all of torch, which raises if an operation is not;
    "benchmark" is left to `fit`. InputError for an invalid setting, for a `temp_dir` that cannot be written or that
    another process has locked, and for a GPU that cannot be used or is out of memory. DeviceError if the GPU fails.
    RuntimeError of torch if another rank ends, or does not answer for `timeout_minutes`.
    """
    check_settings(_config, RULES | rules[""])
    for name in rules.keys() - {""}:
        check_settings(_config[name], rules[name], f"{name}.")
    on_cpu = cpu or not has_gpu()
    lock = exclusive_lock(Path(temp_dir) / ".lock", f"temp_dir={temp_dir}", "choose another temp_dir")
    with (
        process_group(timeout_minutes, on_cpu),
        lock if is_main_process() else nullcontext(),
        device_errors_as_input_errors("dataset.batch_size and dataset.test_batch_size"),
    ):
        cudnn.deterministic = cudnn_flag == "deterministic"
        if any(repository["dirty"] for repository in _run.experiment_info["repositories"]):
            print("the working tree has changes that are not committed: the run folder's _sources are what runs")
        _run.info["versions"] = {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "cuda": torch.version.cuda,
            "faiss": faiss.__version__,
        }
        keep_freed_memory()
        device = torch.device("cpu") if on_cpu else own_gpu()
        _run.info["versions"]["device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        if device.type == "cuda":
            if cudnn_flag == "deterministic":
                os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS adds in any order
                torch.use_deterministic_algorithms(True)
            _run.post_run_hooks.append(partial(note_cuda_memory, _run))
        elif not cpu:
            print("no CUDA device was found: running on the CPU")
        yield device, set_precision(precision, device)


def note_cuda_memory(run) -> None:
    """Note the peak memory of tensors on the GPU, in GB."""
    run.info["peak_cuda_memory_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)


def note_files(run, *paths: Path | str | None) -> None:
    """Note the MD5 sums of files under `info['md5']`; InputError if a file differs between machines."""
    sums = {str(path): md5(Path(path)) for path in paths if path is not None and not local_rank()}
    for other, other_sums in enumerate(all_gather_object(sums)):
        differing = [path for path, digest in other_sums.items() if digest != sums.get(path, digest)]
        if differing:
            raise InputError(
                f"{', '.join(differing)} on the machine of rank {other} differs from that of rank {rank()}: give all "
                "machines the same files"
            )
    run.info.setdefault("md5", {}).update(sums)


def report_recalls(run, recalls: dict, columns: int, title: str = "", best: bool = True, end: str = "") -> None:
    """Print recalls (and mAP@R), noting a K beyond the columns of neighbours; with `best`, set `info['recall']`."""
    at_k = {k: recall for k, recall in recalls.items() if k != MAP_AT_R}
    beyond = [k for k in at_k if k > columns]
    note = f" (K = {listing(beyond)} counts over {columns} neighbours)" if beyond else ""
    if best:
        run.info["recall"] = {str(k): recall for k, recall in recalls.items()}
    precision = f", {MAP_AT_R} {recalls[MAP_AT_R]}" if MAP_AT_R in recalls else ""
    print(f"{title}{at_k}{precision}{note}{end}")


def report_best_ranking(measures: Mapping[str, Measures], k: int) -> None:
    """Print the ranking with the highest R@K, of equal ones the first."""
    recalls = {name: measured.values[f"R@{k}"] for name, measured in measures.items()}
    best = max(recalls, key=recalls.__getitem__)
    print(f"best ranking: {best}, R@{k} {recalls[best]:.2f}")
