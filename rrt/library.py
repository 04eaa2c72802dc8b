"""The library's names, which `rrt` hands on."""

from rrt.features import Features
from rrt.reranker import Match, Reranker
from utils.errors import InputError
from utils.retrieval.ranking import Ranking

__all__ = ["Features", "InputError", "Match", "Ranking", "Reranker"]
