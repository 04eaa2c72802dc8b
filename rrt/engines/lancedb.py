"""A reranker for searches in LanceDB: `table.search(...).rerank(MatchReranker(reranker, "query.jpg"), "photo")`.

LanceDB wants the second argument, a text, where the search is by a vector. It is not used.
"""

from typing import Any, Unpack

import lancedb.rerankers
import numpy as np
import pyarrow as pa

from rrt.arguments import FITTED, Fusion, Options
from rrt.embedder import Images
from rrt.features import Features
from rrt.ranker import Ranker
from utils.errors import InputError

DESCRIPTOR, MAP = "descriptor", "map"


class MatchReranker(lancedb.rerankers.Reranker):
    """Results of a vector, text or hybrid search, by their score for the query's photo, in `_relevance_score`.

    The table has the columns `descriptor` and `map`, lists of fixed size of floating-point numbers, as the table of
    `rrt index` has them; a search that selects columns has to select both.
    """

    def __init__(
        self,
        reranker: Ranker,
        query: Images,
        fusion: Fusion = FITTED,
        return_score: str = "relevance",
        **options: Unpack[Options],
    ):
        super().__init__(return_score)
        self._ranker, self._fusion, self._options = reranker, fusion, options
        self._query = query if isinstance(query, Features) else reranker.embed(query, **options)

    def rerank_vector(self, query: str, vector_results: pa.Table) -> pa.Table:
        return self._ranked(vector_results)

    def rerank_fts(self, query: str, fts_results: pa.Table) -> pa.Table:
        return self._ranked(fts_results)

    def rerank_hybrid(self, query: str, vector_results: pa.Table, fts_results: pa.Table) -> pa.Table:
        merge = self.merge_results if self.score == "relevance" else self._merge_and_keep_scores
        return self._ranked(merge(vector_results, fts_results))

    def _ranked(self, results: pa.Table) -> pa.Table:
        if not {DESCRIPTOR, MAP} <= set(results.column_names):
            raise InputError(f"results have columns {results.column_names}: select '{DESCRIPTOR}' and '{MAP}', too")
        if not len(results):
            return self._handle_empty_results(results)
        values: Any = [np.stack(results[name].to_numpy()) for name in (DESCRIPTOR, MAP)]
        gallery = Features(values[0], values[1].reshape(len(results), *self._query.maps.shape[1:]))
        ranking = self._ranker.rerank(self._query, gallery, np.arange(len(results)), self._fusion, **self._options)
        ranked = results.take(ranking.positions[0]).append_column("_relevance_score", pa.array(ranking.scores[0]))
        return self._keep_relevance_score(ranked)
