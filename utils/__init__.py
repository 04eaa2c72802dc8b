"""Losses, metrics, search, training, files.

The published names below come from their modules when they are first asked for: a package's `__init__` runs before any
of its modules, and `prepare_data.py` and `python -m utils.logs` need no torch, which takes seconds to import.
"""

from importlib import import_module

_HOMES = {
    "BinaryCrossEntropyWithLogits": "utils.training.losses",
    "Contrastive": "utils.training.losses",
    "num_of_trainable_params": "utils.io.checkpoint",
    "pickle_load": "utils.io.neighbours",
    "pickle_save": "utils.io.neighbours",
    "state_dict_to_cpu": "utils.io.checkpoint",
}


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'utils' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
