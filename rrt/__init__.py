"""Reranking transformers as a library: photos to descriptors, pairs of photos to scores, candidates to a ranking."""

from rrt.reranker import Features, Match, Reranker
from utils.errors import InputError

__all__ = ["Features", "InputError", "Match", "Reranker", "__version__"]
__version__ = "0.1"
