"""The two trainings: losses, steps, the loop, and what a run is resumed from.

The published names come from their modules when they are first asked for, as in `utils`.
"""

from importlib import import_module

_HOMES = {
    "evaluate_global": "utils.evaluation",
    "evaluate_rerank": "utils.evaluation",
    "train_global": "utils.training.loop",
    "train_rerank": "utils.training.loop",
}


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'utils.training' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
