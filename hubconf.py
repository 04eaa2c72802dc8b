"""`torch.hub.load(repository, "reranker", source)`: see `rrt.Reranker`.

Modules of the caller that have the clone's names are set aside meanwhile, and are what they were afterwards.
"""

import sys
from types import ModuleType

dependencies = ["huggingface_hub", "numpy", "PIL", "safetensors", "torch", "torchvision", "tqdm"]


def _set_aside() -> dict[str, ModuleType]:
    names = [name for name in sys.modules if name.split(".")[0] in ("models", "sop", "utils")]
    return {name: sys.modules.pop(name) for name in names}


_others = _set_aside()
from rrt import Reranker  # noqa: E402

_set_aside()
sys.modules.update(_others)


def reranker(source="published", **options) -> Reranker:
    """`Reranker.from_pretrained(source, **options)`."""
    return Reranker.from_pretrained(source, **options)
