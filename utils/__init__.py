"""Losses, metrics, search, training, files. The names below are fetched at first use: importing torch takes seconds."""

from importlib import import_module

_HOMES = {
    "BinaryCrossEntropyWithLogits": "utils.losses",
    "Contrastive": "utils.losses",
    "num_of_trainable_params": "utils.checkpoint",
    "pickle_load": "utils.caches",
    "pickle_save": "utils.caches",
    "state_dict_to_cpu": "utils.checkpoint",
}


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'utils' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
