"""Checkpoints: dicts with `state`, `optim` and `scheduler`, read by a restricted unpickler.

Ours also have an `origin`: the `model` settings that scores depend on, whether the matcher was trained, and the crop
size of the training images. Those with weights for a ranking have their record, `fusion`, and in `made_from` the MD5
sum of the file before these were added.
"""

import pickle
import re
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from utils.errors import InputError
from utils.io.atomic import atomic_write
from utils.io.disk import check_stored_zip, open_regular_file
from utils.runtime.signals import deferred_signals

WRAPPERS = ("module", "_orig_mod")  # in names of tensors


def num_of_trainable_params(model: nn.Module) -> int:
    """The number of parameters that receive gradients."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def state_dict_to_cpu(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict's tensors on the CPU, named without what DataParallel and torch.compile put before, at any depth."""

    def bare(name: str) -> str:
        return ".".join(part for part in name.split(".") if part not in WRAPPERS)

    return {bare(name): tensor.detach().cpu() for name, tensor in state.items()}


class TrainingInfo(NamedTuple):
    """How weights were trained, as far as it is known."""

    model: dict[str, Any]  # settings that scores depend on, by name
    matcher_trained: bool | None
    crop_size: int | None = None  # pixels of a side of the training images
    fusion: object = None  # as the file has it, unchecked: the record of `utils.retrieval.fitted.FittedWeights`

    def to_dict(self) -> dict[str, Any]:
        """What a checkpoint has as its `origin`."""
        return {"model": self.model, "matcher_trained": self.matcher_trained, "crop_size": self.crop_size}


UNKNOWN = TrainingInfo({}, None)


def checkpoint_content(model: nn.Module, optimizer, scheduler, origin: TrainingInfo = UNKNOWN) -> dict[str, Any]:
    """The content of a checkpoint."""
    content = {
        "state": state_dict_to_cpu(model.state_dict()),
        "optim": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
    }
    if origin != UNKNOWN:
        content["origin"] = origin.to_dict()
    return content


def save_tensors(path: Path | str, content: dict) -> None:
    """Write tensors and plain values atomically, by torch.save; InputError if the file cannot be written."""
    with deferred_signals(), atomic_write(path) as file:  # torch would hide the exception of a signal
        try:
            torch.save(content, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # torch hides the write that failed
                raise error.__context__ from None
            raise


def load_weights(
    path: Path | str, model: nn.Module, training: bool, settings: Mapping[str, Any] = MappingProxyType({})
) -> TrainingInfo:
    """Load a checkpoint's weights into `model`: a dict with `state`, or a bare state dict, wrapped or not.

    Strict, but for a classifier of another number of classes: evaluation leaves it out, `training` starts it anew.
    Raises InputError for a file that is missing, damaged, no checkpoint, or of another architecture, for weights that
    are not finite, and where the model `settings` are not those that the checkpoint says it was trained with.
    """
    return take_weights(read_tensors(path), path, model, training, settings)


def take_weights(
    content: object,
    path: Path | str,
    model: nn.Module,
    training: bool,
    settings: Mapping[str, Any] = MappingProxyType({}),
) -> TrainingInfo:
    """`load_weights` of what the checkpoint `path` holds."""
    state, expected, origin = state_of(content, path), model.state_dict(), training_info_of(content)
    differing = [name for name in settings if origin.model.get(name, settings[name]) != settings[name]]
    if differing:
        raise InputError(
            f"checkpoint {path} was trained with "
            + ", ".join(f"model.{name}={origin.model[name]}, not {settings[name]}" for name in differing)
            + ": set the same"
        )
    classifier = [name for name in expected if name.startswith("classifier.")]
    if all(name in state for name in classifier) and any(
        state[name].shape != expected[name].shape for name in classifier
    ):
        classes, expected_classes = (tensors["classifier.bias"].numel() for tensors in (state, expected))
        print(
            f"checkpoint {path}: its classifier has {classes} classes, the training images {expected_classes}: "
            + ("WARNING, the classifier starts anew" if training else "it is left out, evaluation does not need it"),
            file=sys.stderr if training else sys.stdout,
        )
        state |= {name: expected[name] for name in classifier}
    load_finite(model, state, path)
    return origin


def load_finite(module: nn.Module, state: Mapping[str, Tensor], path: Path | str) -> None:
    """Load a state dict that fits the module; InputError for one that does not, or has numbers that are not finite."""
    check_fits(state, module, path)
    expected = module.state_dict()
    infinite = [name for name in expected if not state[name].to(expected[name].dtype).isfinite().all()]
    if infinite:
        raise InputError(
            f"checkpoint {path} holds NaN or infinite numbers in {len(infinite)} tensors ({', '.join(infinite[:3])}): "
            "its training had diverged, take another checkpoint"
        )
    module.load_state_dict(state)


def check_fits(state: Mapping[str, Tensor], module: nn.Module, path: Path | str) -> None:
    """Raise InputError unless the state dict of the checkpoint `path` has the names, shapes and kinds of a module's,
    whose numbers are not looked at. Its `tensor_settings` tell by which settings tensors differ."""
    problems = _differences(state, module.state_dict(), getattr(module, "tensor_settings", {}))
    if problems:
        raise InputError(f"checkpoint {path} does not fit this model: " + "; ".join(problems))


def read_tensors(path: Path | str) -> object:
    """Read tensors and plain values from a file of `save_tensors`; InputError for anything else."""
    try:
        with open_regular_file(path) as file:
            if file.read(4) == b"PK\3\4":  # of torch's present format; the former one is no zip file
                check_stored_zip(file, with_sums=True)
            file.seek(0)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Detected pickle protocol")  # it is read or refused anyway
                return torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"checkpoint {path} does not exist: check resume=") from error
    except pickle.UnpicklingError as error:
        reason = re.search(r"Unsupported (?:global|class|operand).*|.*GLOBAL .*", str(error))
        line = reason[0].strip() if reason else _first_line(error)
        line = line.partition(" was not an allowed global")[0]  # without torch's advice to allow it
        raise InputError(
            f"checkpoint {path} was refused, and no code in it was run: it is no plain checkpoint of tensors ({line})"
        ) from None
    except Exception as error:  # a hostile or damaged file can raise anything
        raise InputError(f"checkpoint {path} could not be read: {_first_line(error)}") from error


def state_of(content: object, path: Path | str) -> dict[str, Tensor]:
    """The state dict in the `content` of the checkpoint `path`; InputError if there is none."""
    state = content.get("state", content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not state or not all(map(_is_named_tensor, state, state.values())):
        raise InputError(f"{path} is not a checkpoint: expected a dict with 'state', or a dict of named tensors")
    return state_dict_to_cpu(state)


def _is_named_tensor(name: object, tensor: object) -> bool:
    """Whether it is a dense tensor on the CPU, named by a string."""
    if not isinstance(name, str) or not isinstance(tensor, Tensor):
        return False
    return tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized


def training_info_of(content: object) -> TrainingInfo:
    """How the weights of a checkpoint were trained; without an `origin`, by its optimiser."""
    if not isinstance(content, dict):
        return UNKNOWN
    origin, fusion = content.get("origin"), content.get("fusion")
    if isinstance(origin, dict) and isinstance(origin.get("model"), dict):
        model = {name: value for name, value in origin["model"].items() if isinstance(value, str | int | float | None)}
        size = origin.get("crop_size")
        size = size if isinstance(size, int) else None
        return TrainingInfo(model, bool(origin.get("matcher_trained")), size, fusion)
    try:
        group = content["optim"]["param_groups"][0]
        return TrainingInfo({}, "nesterov" not in group, fusion=fusion)  # SGD trains the global descriptor alone
    except (KeyError, IndexError, TypeError):
        return UNKNOWN._replace(fusion=fusion)


def _kind(tensor: Tensor) -> tuple[bool, bool, bool]:
    return tensor.is_floating_point(), tensor.is_complex(), tensor.dtype == torch.bool


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _differences(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], tensor_settings: Mapping[str, str]
) -> list[str]:
    """What keeps `state` from fitting `expected`, in words, with the settings to look at."""
    differing = {
        "missing": [name for name in expected if name not in state],
        "not in the model": [name for name in state if name not in expected],
        "of another number type": [
            name for name in expected if name in state and _kind(state[name]) != _kind(expected[name])
        ],
        "of another shape": [name for name in expected if name in state and state[name].shape != expected[name].shape],
    }
    problems = []
    for kind, names in differing.items():
        if names:
            examples = [
                f"{name} {tuple(state[name].shape)}, expected {tuple(expected[name].shape)}"
                if kind == "of another shape"
                else name
                for name in names[:3]
            ]
            more = ", ..." if len(names) > 3 else ""
            problems.append(f"{len(names)} tensor{'s' * (len(names) > 1)} {kind} ({', '.join(examples)}{more})")
    settings = {
        next((setting for pattern, setting in tensor_settings.items() if re.match(pattern, name)), "resume")
        for names in differing.values()
        for name in names
    }
    if problems:
        problems.append("was it trained with other " + " or ".join(sorted(settings)) + "?")
    return problems
