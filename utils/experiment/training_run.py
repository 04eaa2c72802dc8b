"""A training run around its epochs: whether it continues an earlier one, its files, and its notes."""

import itertools
import re
import uuid
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

import torch

from utils.distributed.collectives import all_gather_object, broadcast_model, from_rank0
from utils.errors import InputError
from utils.experiment.command import report_recalls
from utils.io.disk import check_disk_space, md5
from utils.io.kept_fusion import add_fusion, is_made_from
from utils.retrieval.fitted import FittedWeights
from utils.retrieval.measures import MAP_AT_R
from utils.runtime.ranks import is_main_process
from utils.settings import FLAG, TEXT, Rules, list_of, number, whole_number
from utils.training.loop import fit
from utils.training.resume import (
    LAST,
    TrainingFiles,
    check_continues,
    is_finished,
    read_last,
    restore,
    restore_random_state,
    run_signature,
)
from utils.training.state import TrainingState, deciding
from utils.training.steps import Step

MAX_LISTED = 10  # unreadable ones, in the terminal
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


def rename_previous(file: Path) -> None:
    """Rename a file of an earlier run to `<name>.<number>.pt`, with the first free number."""
    if file.exists():
        names = (file.with_suffix(f".{number}{file.suffix}") for number in itertools.count(1))
        target = next(name for name in names if not name.exists())
        file.rename(target)
        print(f"{file} is of an earlier run and was moved to {target}")


class Training(NamedTuple):
    """The files of a training in its `temp_dir`, and the state of the run that it continues."""

    files: TrainingFiles
    earlier: dict | None  # the content of `last.pt` of the run to continue; None: a new run
    is_best_lost: bool = False  # the checkpoint of the run to continue is missing or another file

    def initial_weights(self, resume: str | None) -> dict[str, object]:
        """Arguments of `load_model`: no weights for a run that is continued, as `begin` restores its own."""
        return {"resume": resume} if self.earlier is None else {"resume": None, "pretrained": False}

    def begin(self, state: TrainingState) -> None:
        """Restore the run to continue, or broadcast the initial weights; InputError if the disk lacks space."""
        size = 3 * sum(tensor.nbytes for tensor in state.modules.state_dict().values())  # with AdamW's two moments
        # the checkpoint and `last.pt`, twice while they are replaced, and the run folder's copy
        folders = {Path(self.files.about["folder"]): size} if self.files.about["folder"] else {}
        check_disk_space({self.files.checkpoint.parent: 4 * size} | folders, "the checkpoint")
        if self.earlier is None:
            broadcast_model(state.modules)
        else:
            restore(state, self.earlier)
            done = f"{state.epoch} epochs" + (f" and {state.iteration} iterations" if state.iteration else "")
            print(f"the run in {self.files.last.parent} is continued after {done}")

    def begin_best_anew(self, state: TrainingState) -> None:
        """Start the best checkpoint anew: with this state if it was validated, else with the next validated one."""
        state.best = None
        if state.is_validated and not state.iteration:
            state.best = deciding([*state.validations().values()][-1])
            self.files.save_best(state)
        self.files.save_last(state)


@from_rank0
def open_training(
    photo_sizes: Callable[[], list[int]],
    may_change: Collection[str],
    _run,
    _config: dict,
    temp_dir: str,
    epochs: int,
    continue_run: bool | None,
    save_minutes: float,
    cpu: bool,
) -> Training:
    """Look for a run to continue in `temp_dir`, before weights are loaded and after `note_files`.

    `photo_sizes` returns the bytes of all photos, -1 for a missing one; `may_change` names settings of ingredients that
    may differ from those of the run to continue. InputError if there is an unfinished run and `continue_run` is None,
    or if the run to continue has other settings, files or photos. Rank 0 looks, and broadcasts the result.
    """
    arch = re.sub(r"[/:]+", "_", _config["model"]["arch"])  # timm's may be a repository or a folder
    checkpoint = Path(temp_dir) / f"{arch}_{_config['dataset']['name']}.pt"
    device = "cpu" if cpu or not torch.cuda.is_available() else "cuda"
    signature = run_signature(_config, [*_run.info["md5"].values()], device, may_change) | {"photos": photo_sizes()}
    is_best_lost = False
    earlier = None if continue_run is False else read_last(Path(temp_dir))
    if earlier is not None and continue_run is None and not is_finished(earlier):
        raise InputError(
            f"temp_dir={temp_dir} holds a run that stopped after {earlier['epoch']} of {earlier['about']['epochs']} "
            "epochs: set continue_run=True to go on, or continue_run=False to start anew and keep its files under "
            "other names"
        )
    if continue_run and earlier is not None:
        check_continues(earlier, signature)
        if epochs < earlier["epoch"]:
            raise InputError(f"epochs={epochs}, but {earlier['epoch']} are trained already: give as many or more")
        signature["run_id"], _run.info["continues"] = earlier["about"]["run_id"], earlier["about"]["folder"]
        digest = md5(checkpoint) if checkpoint.exists() else ""
        # older last.pt files do not have the MD5 sum of the checkpoint
        expected = earlier["about"].get("checkpoint", digest)
        is_best = "" not in (digest, expected) and (digest == expected or is_made_from(checkpoint, expected))
        signature["checkpoint"] = expected if is_best else digest
        is_best_lost = earlier["best"] is not None and not is_best
        if is_best_lost:
            print(f"{checkpoint}, the run's best state, is {'another file' if digest else 'missing'}: best starts anew")
            rename_previous(checkpoint)
    else:
        if continue_run:
            print(f"continue_run=True, but there is no {LAST} in {temp_dir}: the run starts anew")
        earlier, signature["run_id"] = None, uuid.uuid4().hex
        for file in (checkpoint, Path(temp_dir) / LAST):
            if file.exists() and _config["resume"] is not None and Path(_config["resume"]).resolve() == file.resolve():
                raise InputError(f"resume={file} is where this run writes: choose another temp_dir")
            rename_previous(file)
    _run.info["run_id"] = signature["run_id"]
    signature |= {"epochs": epochs, "folder": next((str(o.dir) for o in _run.observers if hasattr(o, "dir")), None)}
    return Training(TrainingFiles(checkpoint, signature, save_minutes), earlier, is_best_lost)


def best_validation(state: TrainingState) -> tuple[float, dict[int | str, float]]:
    """The epochs trained before the best validation, of equal ones the last, and its recalls by K (and mAP@R)."""
    best = (item for item in reversed(state.validations().items()) if deciding(item[1]) == state.best)
    return next(best, (state.epoch, {}))


def report_unreadable(run, paths: list[str]) -> None:
    """Print the photos that could not be read, and note all of them in `info['unreadable']`."""
    if paths:
        run.info["unreadable"] = paths
        more = f" and {len(paths) - MAX_LISTED} more (info.json lists all)" if len(paths) > MAX_LISTED else ""
        print(
            f"dataset.skip_unreadable: {len(paths)} training photos could not be read, and were replaced by others of "
            f"their classes: {', '.join(paths[:MAX_LISTED])}{more}"
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
    fit_fusion: Callable[[], FittedWeights | None] = lambda: None,
) -> float:
    """Run `utils.training.loop.fit`, logged to Sacred; the best checkpoint is the run's artifact, and printed last.

    `fit_fusion()` is called at the end; the weights that it fits for a ranking are kept in the checkpoint.
    """
    files = training.files
    if training.earlier is not None:
        restore_random_state(training.earlier)
        if training.is_best_lost:
            training.begin_best_anew(state)
        _run.info["recall"] = {str(k): recall for k, recall in best_validation(state)[1].items()}
    paths = loader.dataset.unreadable

    def report(recalls: dict[int, float], columns: int, title: str, improved: bool) -> None:
        end = f" after epoch {state.epoch} of {epochs}" if state.epoch else ""
        report_recalls(_run, recalls, columns, title, improved, end)

    try:
        best = fit(
            state,
            step,
            loader,
            validate,
            epochs,
            log=_run,
            report=report,
            files=files,
            autotune=cudnn_flag == "benchmark",
        )
    except BaseException:
        report_unreadable(_run, paths())
        raise
    fusion = fit_fusion()
    if fusion is not None and is_main_process():
        _run.info["fusion"] = fusion.to_dict()
        add_fusion(files.checkpoint, _run.info["fusion"])
    unreadable = sorted(set().union(*all_gather_object(paths())))
    if is_main_process():
        _run.info["md5"][str(files.checkpoint)] = md5(files.checkpoint)
        _run.add_artifact(str(files.checkpoint))
    report_unreadable(_run, unreadable)
    epoch, recalls = best_validation(state)
    names = ", ".join(f"{k if k == MAP_AT_R else f'R@{k}'} {value:.2f}" for k, value in recalls.items())
    when = f"{epoch:g} of {epochs}" if epoch else "0, before training"
    print(f"best epoch: {when}; {names}; checkpoint {files.checkpoint}")
    return best
