"""What the four commands that compute do around their work: checks, the device, the run's files, training."""

import itertools
import os
import platform
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import NamedTuple

import faiss
import torch
from torch.backends import cudnn

from utils.continuing import (
    LAST,
    TrainingFiles,
    check_continues,
    is_finished,
    read_last,
    restore,
    restore_random_state,
    run_signature,
)
from utils.embedding import device_errors_as_input_errors
from utils.errors import InputError, listing
from utils.files import check_disk_space, exclusive_lock, md5
from utils.launch import is_main_process, local_rank, rank
from utils.memory import keep_freed_memory
from utils.precision import DTYPES, set_precision
from utils.processes import all_gather_object, broadcast_from_rank0, broadcast_model, process_group
from utils.settings import FLAG, SEED, TEXT, Rules, check_settings, list_of, number, one_of, whole_number
from utils.steps import Step
from utils.training import TrainingState, fit

RULES: Rules = {
    "temp_dir": TEXT,
    "cpu": FLAG,
    "cudnn_flag": one_of("benchmark", "deterministic"),
    "precision": one_of(*DTYPES, None),
    "seed": SEED,
    "timeout_minutes": number(0.1),
}
NO_GPU = re.compile("No CUDA GPUs|no NVIDIA driver")  # in what torch says on a machine without one
SHOWN = 10  # unreadable photos in the terminal
TRAINING_RULES: Rules = {
    "epochs": whole_number(0),
    "lr": number(0),
    "weight_decay": number(0),
    "no_bias_decay": FLAG,
    "scheduler_tau": list_of(whole_number(0), least=0),
    "scheduler_gamma": number(0),
    "micro_batch": whole_number(1).or_none(),
    "resume": TEXT.or_none(),
    "continue_run": FLAG.or_none(),
    "save_minutes": number(0),
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
    """In the block the run alone writes to `temp_dir`; gives the device and the number format to compute in.

    The device is the GPU of this process's number, or the CPU when asked for or without CUDA. Settings are checked
    first, those of an ingredient by the `rules` under its name, the command's own by those under "". Notes versions and
    keeps freed memory. "deterministic" is asked of cuDNN, and on a GPU of all of torch, which raises where it cannot;
    "benchmark" is for `fit`. InputError for a setting that cannot be used, for a `temp_dir` that cannot be written or
    that another process writes to, for a GPU that cannot be used, and where its memory is full. DeviceError where it
    fails. PeerError where another process of the job ends, or is silent for `timeout_minutes`.
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


def has_gpu() -> bool:
    """Whether torch can use a GPU; InputError where there is one that it cannot use, by a driver too old for it say."""
    if torch.cuda.is_available():
        return True
    try:
        torch.cuda.init()
    except AssertionError:  # a torch without CUDA
        pass
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        if not NO_GPU.search(reason):
            raise InputError(f"the GPU cannot be used ({reason}): mend that, or set cpu=True") from error
    return False


def own_gpu() -> torch.device:
    """The GPU of this process; InputError where the machine has more processes than GPUs."""
    if local_rank() >= torch.cuda.device_count():
        raise InputError(
            f"process {local_rank()} of this machine has no GPU: there are {torch.cuda.device_count()}, start as many "
            "processes (torchrun --nproc_per_node)"
        )
    torch.cuda.set_device(local_rank())
    return torch.device("cuda", local_rank())


def note_cuda_memory(run) -> None:
    """Note the most memory that tensors held on the GPU, in GB."""
    run.info["peak_cuda_memory_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)


def note_files(run, *paths: Path | str | None) -> None:
    """Note the MD5 sums of a run's files under `info['md5']`; InputError where a machine of the job has another one."""
    sums = {str(path): md5(Path(path)) for path in paths if path is not None and not local_rank()}
    for other, others in enumerate(all_gather_object(sums)):
        differing = [path for path in others if others[path] != sums.get(path, others[path])]
        if differing:
            raise InputError(
                f"{', '.join(differing)} on the machine of process {other} is another file than that of process "
                f"{rank()}: give all machines the same files"
            )
    run.info.setdefault("md5", {}).update(sums)


def report_recalls(run, recalls: dict[int, float], columns: int, title: str = "", best: bool = True) -> None:
    """Print recalls, saying so where a K exceeds the columns of neighbours; `best` ones go to `info['recall']`."""
    beyond = [k for k in recalls if k > columns]
    note = f" (K = {listing(beyond)} counts over the {columns} neighbours there are)" if beyond else ""
    if best:
        run.info["recall"] = {str(k): recall for k, recall in recalls.items()}
    print(f"{title}{recalls}{note}")


def rename_previous(file: Path) -> None:
    """Move a file of an earlier run to `<name>.<number>.pt`, the next that is free."""
    if file.exists():
        names = (file.with_suffix(f".{number}{file.suffix}") for number in itertools.count(1))
        kept = next(name for name in names if not name.exists())
        file.rename(kept)
        print(f"{file} is of an earlier run and was moved to {kept}")


class Training(NamedTuple):
    """What a training has found in its `temp_dir`, and the files that it writes there."""

    files: TrainingFiles
    earlier: dict | None  # the content of `last.pt` of the run to continue; None: the run starts anew
    is_best_lost: bool = False  # the checkpoint of the run to continue is not there any more

    def initial_weights(self, resume: str | None) -> dict[str, object]:
        """Where `load_model` takes weights from: nowhere for a run that is continued, which has its own."""
        return {"resume": resume} if self.earlier is None else {"resume": None, "pretrained": False}

    def begin(self, state: TrainingState) -> None:
        """Take the run up where it was left; InputError where there is no room for what it will write."""
        size = 3 * sum(tensor.nbytes for tensor in state.model.state_dict().values())  # with AdamW's two moments
        # the checkpoint and `last.pt`, twice while they are replaced, and the run folder's copy
        folders = {Path(self.files.about["folder"]): size} if self.files.about["folder"] else {}
        check_disk_space({self.files.checkpoint.parent: 4 * size} | folders, "the checkpoint")
        if self.earlier is None:
            broadcast_model(state.model)
        else:
            restore(state, self.earlier)
            done = f"{state.epoch} epochs" + (f" and {state.iteration} iterations" if state.iteration else "")
            print(f"the run in {self.files.last.parent} is continued after {done}")

    def begin_best_anew(self, state: TrainingState) -> None:
        """Take the state for the best, where its recall is known, else the next one that is validated."""
        state.best = None
        if state.is_validated and not state.iteration:
            state.best = next(value for name, value, _ in reversed(state.scalars) if name == "val.recall@1")
            self.files.save_best(state)
        self.files.save_last(state)


def open_training(
    photo_sizes: Callable[[], list[int]],
    _run,
    _config: dict,
    temp_dir: str,
    epochs: int,
    continue_run: bool | None,
    save_minutes: float,
    cpu: bool,
) -> Training:
    """Look for a run to continue in `temp_dir`, before weights are loaded and after `note_files`.

    `photo_sizes` gives the bytes of all photos, -1 for a missing one. InputError where there is an unfinished run and
    `continue_run` does not say what to do, or where the one to be continued has other settings, files or photos. Of a
    job of several processes the first looks, and tells the others.
    """
    settings = (temp_dir, epochs, continue_run, save_minutes, cpu)
    return broadcast_from_rank0(lambda: _open_training(photo_sizes(), _run, _config, *settings))


def _open_training(
    photo_sizes: list[int],
    _run,
    _config: dict,
    temp_dir: str,
    epochs: int,
    continue_run: bool | None,
    save_minutes: float,
    cpu: bool,
) -> Training:
    checkpoint = Path(temp_dir) / f"{_config['model']['arch']}_{_config['dataset']['name']}.pt"
    device = "cpu" if cpu or not torch.cuda.is_available() else "cuda"
    about = run_signature(_config, [*_run.info["md5"].values()], device) | {"photos": photo_sizes}
    is_best_lost = False
    earlier = None if continue_run is False else read_last(Path(temp_dir))
    if earlier is not None and continue_run is None and not is_finished(earlier):
        raise InputError(
            f"temp_dir={temp_dir} holds a run that stopped after {earlier['epoch']} of {earlier['about']['epochs']} "
            "epochs: set continue_run=True to go on, or continue_run=False to start anew and keep its files under "
            "other names"
        )
    if continue_run and earlier is not None:
        check_continues(earlier, about)
        if epochs < earlier["epoch"]:
            raise InputError(f"epochs={epochs}, but {earlier['epoch']} are trained already: give as many or more")
        about["run_id"], _run.info["continues"] = earlier["about"]["run_id"], earlier["about"]["folder"]
        about["checkpoint"] = found = md5(checkpoint) if checkpoint.exists() else ""
        # an older last.pt does not say which file it is
        is_best_lost = earlier["best"] is not None and not found == earlier["about"].get("checkpoint", found) != ""
        if is_best_lost:
            print(f"{checkpoint}, the run's best state, is {'another file' if found else 'missing'}: best starts anew")
            rename_previous(checkpoint)
    else:
        if continue_run:
            print(f"continue_run=True, but there is no {LAST} in {temp_dir}: the run starts anew")
        earlier, about["run_id"] = None, uuid.uuid4().hex
        for file in (checkpoint, Path(temp_dir) / LAST):
            if file.exists() and _config["resume"] is not None and Path(_config["resume"]).resolve() == file.resolve():
                raise InputError(f"resume={file} is where this run writes: choose another temp_dir")
            rename_previous(file)
    _run.info["run_id"] = about["run_id"]
    about |= {"epochs": epochs, "folder": next((str(o.dir) for o in _run.observers if hasattr(o, "dir")), None)}
    return Training(TrainingFiles(checkpoint, about, save_minutes), earlier, is_best_lost)


def best_recalls(state: TrainingState) -> dict[str, float]:
    """The recalls by K of the last validation that was as good as the best."""
    validations: dict[float, dict[str, float]] = {}
    for name, value, epoch in state.scalars:
        if name.startswith("val.recall@"):
            validations.setdefault(epoch, {})[name.removeprefix("val.recall@")] = value
    return next((recalls for recalls in reversed(validations.values()) if recalls.get("1") == state.best), {})


def report_unreadable(run, paths: list[str]) -> None:
    """Print which photos could not be read, and note all in `info['unreadable']`."""
    if paths:
        run.info["unreadable"] = paths
        more = f" and {len(paths) - SHOWN} more (info.json lists all)" if len(paths) > SHOWN else ""
        print(
            f"dataset.skip_unreadable: {len(paths)} training photos could not be read, and others of their classes "
            f"took their places: {', '.join(paths[:SHOWN])}{more}"
        )


def run_training(
    _run,
    epochs: int,
    cudnn_flag: str,
    training: Training,
    state: TrainingState,
    step: Step,
    loader,
    validate: Callable[[], tuple],
) -> float:
    """`utils.training.fit`, logged to the run; its artifact is the best state."""
    files = training.files
    if training.earlier is not None:
        restore_random_state(training.earlier)
        if training.is_best_lost:
            training.begin_best_anew(state)
        _run.info["recall"] = best_recalls(state)
    paths = loader.dataset.unreadable
    try:
        best = fit(
            state,
            step,
            loader,
            validate,
            epochs,
            log=_run,
            report=partial(report_recalls, _run),
            files=files,
            autotune=cudnn_flag == "benchmark",
        )
    except BaseException:
        report_unreadable(_run, paths())
        raise
    unreadable = sorted(set().union(*all_gather_object(paths())))
    if is_main_process():
        _run.info["md5"][str(files.checkpoint)] = md5(files.checkpoint)
        _run.add_artifact(str(files.checkpoint))
    report_unreadable(_run, unreadable)
    return best
