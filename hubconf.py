"""`torch.hub.load(repository, "reranker", source)`: see `rrt.Reranker`."""

import sys
from pathlib import Path

dependencies = ["huggingface_hub", "numpy", "PIL", "safetensors", "torch", "torchvision", "tqdm"]

for name in ("models", "sop", "utils"):
    loaded = sys.modules.get(name)
    if loaded and Path(__file__).parent not in Path(getattr(loaded, "__file__", None) or "").parents:
        raise ImportError(f"a module {name!r} of another project is loaded: install this one by pip, and import rrt")

from rrt import Reranker  # noqa: E402


def reranker(source="published", **options) -> Reranker:
    """`Reranker.from_pretrained(source, **options)`."""
    return Reranker.from_pretrained(source, **options)
