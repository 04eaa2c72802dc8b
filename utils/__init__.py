"""Losses, metrics, search, training, files. The names below are fetched at first use: importing torch takes seconds."""

import os
from importlib import import_module

# Tensors of 2 MB and more lie in huge pages where Linux grants them: each step takes them anew, and page by page that
# can cost as much as filling them ten times. torch reads this at its first such tensor.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

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
