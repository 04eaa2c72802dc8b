"""What the four commands that compute do around their work: checks, the device, the run's files, training."""

import hashlib
import itertools
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import faiss
import torch
from torch.backends import cudnn

from utils.errors import listing
from utils.files import check_room, only_writer
from utils.memory import keep_freed_memory
from utils.precision import DTYPES, set_precision
from utils.settings import FLAG, SEED, TEXT, Rules, check_settings, list_of, number, one_of, whole_number
from utils.steps import Step
from utils.training import TrainingState, fit

RULES: Rules = {
    "temp_dir": TEXT,
    "cpu": FLAG,
    "cudnn_flag": one_of("benchmark", "deterministic"),
    "precision": one_of(*DTYPES, None),
    "seed": SEED,
}
TRAINING_RULES: Rules = {
    "epochs": whole_number(0),
    "lr": number(0),
    "weight_decay": number(0),
    "no_bias_decay": FLAG,
    "scheduler_tau": list_of(whole_number(0), least=0),
    "scheduler_gamma": number(0),
    "micro_batch": whole_number(1).or_none(),
    "resume": TEXT.or_none(),
}


@contextmanager
def begin_run(
    rules: Mapping[str, Rules], _run, _config: dict, temp_dir: str, cpu: bool, cudnn_flag: str, precision: str | None
) -> Iterator[tuple[torch.device, torch.dtype]]:
    """In the block the run alone writes to `temp_dir`; gives the device and the number format to compute in.

    The device is `cuda:0`, or the CPU when asked for or without CUDA. Settings are checked first, those of an
    ingredient by the `rules` under its name, the command's own by those under "". Sets cuDNN's flag, notes versions and
    keeps freed memory. InputError for a setting that cannot be used, and for a `temp_dir` that cannot be written or
    that another process writes to.
    """
    check_settings(_config, RULES | rules[""])
    for name in rules.keys() - {""}:
        check_settings(_config[name], rules[name], f"{name}.")
    with only_writer(Path(temp_dir) / ".lock", f"temp_dir={temp_dir}", "choose another temp_dir"):
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
        yield device, set_precision(precision, device)


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


def keep_earlier(file: Path) -> None:
    """Move a file of an earlier run to `<name>.<number>.pt`, the next that is free."""
    if file.exists():
        names = (file.with_suffix(f".{number}{file.suffix}") for number in itertools.count(1))
        kept = next(name for name in names if not name.exists())
        file.rename(kept)
        print(f"{file} is of an earlier run and was moved to {kept}")


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
    keep_earlier(checkpoint)
    weights = sum(tensor.nbytes for tensor in state.model.state_dict().values())
    check_room(checkpoint.parent, 2 * 3 * weights, "the checkpoint")  # twice, while it is replaced; AdamW's two moments
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
