"""What a training leaves to be continued from: `last.pt`, all that the run is, beside the best checkpoint."""

import copy
import json
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from utils.errors import InputError
from utils.io.checkpoint import (
    TrainingInfo,
    checkpoint_content,
    load_finite,
    read_tensors,
    save_tensors,
    state_dict_to_cpu,
    take_weights,
)
from utils.io.disk import md5
from utils.runtime.ranks import is_main_process, rank
from utils.runtime.signals import deferred_signals

LAST = "last.pt"
# Settings that do not alter a run, or its rounding alone, and paths: what the files hold is compared.
MAY_CHANGE_ON_RESUME = {
    "continue_run",
    "save_minutes",
    "timeout_minutes",
    "micro_batch",
    "epochs",
    "temp_dir",
    "resume",
    "cache_nn_inds",
    "model.grad_checkpointing",
}
ADDED = {  # settings that older files lack, and what their runs did
    "objective": "published",
    "num_negatives": 1,
    "model.local_size": None,
    "model.pool": "avg",
    "model.backbone_lr": None,
}
EXPECTED = {  # the parts of `last.pt` and their types
    "model": dict,
    "criterion": dict | None,  # older ones lack it
    "optimizer": dict,
    "scheduler": dict,
    "scaler": dict,
    "random_state": list,
    "epoch": int,
    "iteration": int,
    "is_validated": bool,
    "best": float | None,
    "scalars": list,
    "origin": dict,
    "about": dict,
}
EXPECTED_ABOUT = {
    "settings": str,
    "sums": list,
    "device": str,
    "epochs": int,
    "run_id": str,
    "folder": str | None,
    "photos": list | None,  # older ones lack it
    "checkpoint": str | None,  # that, too
}


class TrainingFiles:
    """The files that a training writes into its folder.

    One that cannot be written is kept as it was, which is said, and is tried again with the next. `about` has the MD5
    sum of the checkpoint that stands there, without weights fitted later, which is no checkpoint's while one could not
    be written.
    """

    def __init__(self, checkpoint: Path, about: Mapping[str, Any] | None = None, save_minutes: float = 10):
        """`about` says which run it is (`run_signature`); `last.pt` is due every `save_minutes`."""
        self.checkpoint, self.last = checkpoint, checkpoint.with_name(LAST)
        self.about, self.save_seconds = dict(about or {}), 60 * save_minutes
        self.saved_at = time.monotonic()
        self.unsaved: dict[Path, dict] = {}

    def save_best(self, state) -> None:
        """Write the checkpoint."""
        if is_main_process():
            self._save(self.checkpoint, checkpoint_content(state.model, state.optimizer, state.scheduler, state.origin))

    def is_due(self) -> bool:
        """Whether `last.pt` is as old as it may get."""
        return is_main_process() and time.monotonic() - self.saved_at >= self.save_seconds

    def save_last(self, state) -> None:
        """Write `last.pt`, and a checkpoint that could not be written before."""
        if not is_main_process():
            return
        with deferred_signals():
            for path, content in list(self.unsaved.items()):
                if path != self.last:
                    self._save(path, content)
            self._save(self.last, last_content(state, self.about))
            self.saved_at = time.monotonic()

    def check(self) -> None:
        """Raise InputError where a file could not be written to the end."""
        if self.unsaved:
            raise InputError(
                f"{', '.join(map(str, self.unsaved))} could not be written (see above): older ones are kept"
            )

    def _save(self, path: Path, content: dict) -> None:
        try:
            save_tensors(path, content)
            if path == self.checkpoint:
                self.about["checkpoint"] = md5(path)
            self.unsaved.pop(path, None)
        except InputError as error:
            print(f"{error}; training goes on, and it is tried again")
            if path == self.checkpoint:
                self.about["checkpoint"] = ""
            self.unsaved[path] = {} if path == self.last else copy.deepcopy(content)  # weights change


def last_content(state, about: Mapping[str, Any]) -> dict:
    """All that a run is, between two iterations."""
    return {
        "model": state_dict_to_cpu(state.model.state_dict()),
        "criterion": state_dict_to_cpu(state.criterion.state_dict()),
        "optimizer": state.optimizer.state_dict(),
        "scheduler": state.scheduler.state_dict(),
        "scaler": state.scaler.state_dict(),
        "random_state": random_state(),
        "epoch": state.epoch,
        "iteration": state.iteration,
        "is_validated": state.is_validated,
        "best": state.best,
        "scalars": state.scalars,
        "origin": state.origin.to_dict(),
        "about": dict(about),
    }


def read_last(folder: Path) -> dict | None:
    """What `last.pt` in a folder holds, None where there is none; InputError for one that is none of ours."""
    path = folder / LAST
    if not path.exists():
        return None
    content = read_tensors(path)
    if not _has(content, EXPECTED) or not _has(content["about"], EXPECTED_ABOUT):  # type: ignore[index]
        raise InputError(f"{path} holds no run to continue: set continue_run=False to start anew")
    return content  # type: ignore[return-value]


def is_finished(content: dict) -> bool:
    """Whether the run of a `last.pt` was trained and validated to its end."""
    return content["epoch"] >= content["about"]["epochs"] and content["is_validated"]


def _has(content: object, expected: Mapping[str, Any]) -> bool:
    """Whether it is a dict with entries of these types."""
    return isinstance(content, dict) and all(isinstance(content.get(key), kind) for key, kind in expected.items())


def restore(state, content: dict) -> None:
    """Take a run up again where `content` was written; InputError where it does not fit, or is not finite."""
    try:
        take_weights(content["model"], LAST, state.model, training=True)
        load_finite(state.criterion, content.get("criterion") or {}, LAST)
        state.optimizer.load_state_dict(content["optimizer"])
        state.scheduler.load_state_dict(content["scheduler"])
        state.scaler.load_state_dict(content["scaler"])
        state.epoch, state.iteration, state.is_validated = (content[k] for k in ("epoch", "iteration", "is_validated"))
        state.origin = TrainingInfo(**content["origin"])
        state.best, state.scalars = content["best"], [(str(n), float(v), float(s)) for n, v, s in content["scalars"]]
        for parameter, moments in state.optimizer.state.items():
            for name, moment in moments.items():
                if name != "step" and isinstance(moment, torch.Tensor) and moment.shape != parameter.shape:
                    raise ValueError(f"a parameter of shape {tuple(parameter.shape)} has {name} {tuple(moment.shape)}")
    except (RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{LAST} does not fit this run ({str(error).splitlines()[0]}): start anew") from error


def random_state() -> list[torch.Tensor]:
    """What torch draws from next, on the CPU and, where it is in use, on the GPU."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else [])]


def set_random_state(states: Sequence[torch.Tensor]) -> None:
    """Draw as from where `random_state` was taken."""
    torch.set_rng_state(states[0])
    if torch.cuda.is_initialized() and len(states) > 1:
        torch.cuda.set_rng_state(states[1])


def restore_random_state(content: dict) -> None:
    """Draw as the run would have drawn on; of several processes the first does, and each other one draws its own."""
    if not is_main_process():
        key = (torch.initial_seed(), rank(), content["epoch"], content["iteration"])
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))
        return
    try:
        set_random_state(content["random_state"])
    except (RuntimeError, IndexError, TypeError, AttributeError) as error:
        raise InputError(f"{LAST} holds no random state ({error}): set continue_run=False to start anew") from error


def run_signature(
    config: Mapping[str, Any], sums: list[str], device: str, may_change: Collection[str] = ()
) -> dict[str, Any]:
    """What must be equal in a run and what continues it: settings, MD5 sums of the files read, the kind of device.

    `may_change` names settings of ingredients ("dataset.data_path") that need not be equal. And `photos`, the bytes of
    each, -1 for one that is missing: the lists may lie in another folder with other photos.
    """
    flat = {key: value for key, value in config.items() if not isinstance(value, Mapping)}
    for part in config.keys() - flat.keys():
        flat |= {f"{part}.{key}": value for key, value in config[part].items()}
    settings = {key: value for key, value in flat.items() if key not in MAY_CHANGE_ON_RESUME.union(may_change)}
    return {"settings": json.dumps(settings, sort_keys=True), "sums": sums, "device": device}


def check_continues(content: dict, about: Mapping[str, Any]) -> None:
    """Raise InputError, with both values, where a run `about` these settings is not the one that `content` is of."""
    before, now = content["about"], about
    try:
        settings_before, settings_now = (json.loads(part["settings"]) for part in (before, now))
        settings_before = {k: value for k, value in ADDED.items() if k in settings_now} | settings_before
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{LAST} holds no settings ({error}): set continue_run=False to start anew") from error
    changed = [
        f"{key}={settings_now.get(key)!r}, not {settings_before.get(key)!r}"
        for key in sorted(settings_before.keys() | settings_now.keys())
        if settings_before.get(key) != settings_now.get(key)
    ]
    if before["device"] != now["device"]:
        changed.append(f"it runs on {now['device']}, not {before.get('device')}")
    if before["sums"] != now["sums"]:
        changed.append("the split or neighbour files hold something else")
    sizes = [*zip(before.get("photos") or (), now.get("photos", ()), strict=False)]
    others = sum(isinstance(then, int) and then != size and -1 not in (then, size) for then, size in sizes)
    if others:
        changed.append(f"{others} of {len(sizes)} photos have another size")
    if changed:
        advice = "Set it as it was, or continue_run=False to start anew"
        raise InputError(f"this is not the run that {LAST} is of: {'; '.join(changed)}. {advice}")
