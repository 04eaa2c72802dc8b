"""The library's names, which `rrt` hands on."""

from rrt.features import Features
from rrt.patches import PatchPair
from rrt.ranker import Match
from rrt.reranker import Reranker
from rrt.stores import RankedIds, Store
from utils.errors import InputError
from utils.retrieval.ranking import Ranking

__all__ = ["Features", "InputError", "Match", "PatchPair", "RankedIds", "Ranking", "Reranker", "Store"]
