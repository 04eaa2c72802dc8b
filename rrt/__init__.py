"""Reranking transformers as a library: photos to descriptors, pairs of photos to scores, candidates to a ranking.

Names are imported when they are first asked for: torch takes seconds, and `rrt --help` needs none of it.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rrt.library import Features, InputError, Match, PatchPair, RankedIds, Ranking, Reranker, Store

__all__ = ["Features", "InputError", "Match", "PatchPair", "RankedIds", "Ranking", "Reranker", "Store", "__version__"]
__version__ = "0.1"


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"module 'rrt' has no attribute {name!r}")
    return getattr(import_module("rrt.library"), name)
