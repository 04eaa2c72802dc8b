"""Checkpoints: dicts with `state`, `optim` and `scheduler`, read without running any code they may hold."""

import pickle
import re
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from utils.errors import InputError
from utils.files import atomic_write

SETTINGS = {  # which setting decides whether a tensor exists, and its shape
    r"remap_local\.": "model.num_local_features",
    r"remap\.": "model.num_global_features and model.remap",
    r"norm_layer\.": "model.norm_layer",
    r"matcher\.encoder\.norm\.": "model.ert_normalize_before",
    r"matcher\.encoder\.layers\.\d+\.linear[12]\.": "model.ert_dim_feedforward and model.ert_num_encoder_layers",
    r"matcher\.encoder\.": "model.ert_num_encoder_layers and model.num_local_features",
    r"matcher\.": "model.num_local_features",
    r"(conv1|bn1|layer\d)\.": "model.arch",
}


def num_of_trainable_params(model: nn.Module) -> int:
    """The number of parameters that receive gradients."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def state_dict_to_cpu(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict's tensors on the CPU, without the `module.` prefixes of DataParallel."""
    return {name.removeprefix("module."): tensor.detach().cpu() for name, tensor in state.items()}


def save_checkpoint(path: Path | str, model: nn.Module, optimizer, scheduler) -> None:
    """Write model, optimiser and scheduler states, whole or not at all."""
    content = {
        "state": state_dict_to_cpu(model.state_dict()),
        "optim": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
    }
    save_tensors(path, content)


def save_tensors(path: Path | str, content: dict) -> None:
    """Write tensors and plain values as torch.save does, whole or not at all; InputError when it cannot be written."""
    with atomic_write(path) as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # torch hides the write that failed
                raise error.__context__ from None
            raise


def load_weights(path: Path | str, model: nn.Module, training: bool) -> None:
    """Load a checkpoint's weights into `model`: a dict with `state`, or a bare state dict, `module.` prefixes or not.

    Strict, but for a classifier of another number of classes: evaluation leaves it out, `training` starts it anew.
    Raises InputError for a file that is missing, damaged, no checkpoint, or of another architecture.
    """
    state, expected = _read(path), model.state_dict()
    classifier = [name for name in expected if name.startswith("classifier.")]
    if any(name in state and state[name].shape != expected[name].shape for name in classifier):
        classes, expected_classes = (len(tensors["classifier.bias"]) for tensors in (state, expected))
        print(
            f"checkpoint {path}: its classifier has {classes} classes, the training images {expected_classes}: "
            + ("WARNING, the classifier starts anew" if training else "it is left out, evaluation does not need it"),
            file=sys.stderr if training else sys.stdout,
        )
        state |= {name: expected[name] for name in classifier}
    problems = _differences(state, expected)
    if problems:
        raise InputError(f"checkpoint {path} does not fit this model: " + "; ".join(problems))
    model.load_state_dict(state)


def _read(path: Path | str) -> dict[str, Tensor]:
    """The state dict in a checkpoint file."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"checkpoint {path} does not exist: check resume=") from error
    except pickle.UnpicklingError as error:
        reason = re.search(r"Unsupported (?:global|class|operand).*|.*GLOBAL .*", str(error))
        raise InputError(
            f"checkpoint {path} was refused, and no code in it was run: it is no plain checkpoint of tensors "
            f"({reason[0].strip() if reason else _first_line(error)})"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise InputError(f"checkpoint {path} could not be read: {_first_line(error)}") from error
    state = content.get("state", content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not state or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise InputError(f"{path} is not a checkpoint: expected a dict with 'state', or a dict of named tensors")
    return state_dict_to_cpu(state)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _differences(state: dict[str, Tensor], expected: dict[str, Tensor]) -> list[str]:
    """What keeps `state` from fitting `expected`, in words, with the settings to look at."""
    differing = {
        "missing": [name for name in expected if name not in state],
        "not in the model": [name for name in state if name not in expected],
        "of another shape": [name for name in expected if name in state and state[name].shape != expected[name].shape],
    }
    problems = []
    for kind, names in differing.items():
        if names:
            examples = [
                f"{name} {tuple(state[name].shape)}, expected {tuple(expected[name].shape)}"
                if name in expected and name in state
                else name
                for name in names[:3]
            ]
            more = ", ..." if len(names) > 3 else ""
            problems.append(f"{len(names)} tensor{'s' * (len(names) > 1)} {kind} ({', '.join(examples)}{more})")
    settings = {
        next((setting for pattern, setting in SETTINGS.items() if re.match(pattern, name)), "resume")
        for names in differing.values()
        for name in names
    }
    if problems:
        problems.append("was it trained with other " + " or ".join(sorted(settings)) + "?")
    return problems
