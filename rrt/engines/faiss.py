"""Features behind an index of faiss."""

from typing import Any

import faiss
import numpy as np

from rrt.features import Features
from utils.errors import InputError


class FaissStore:
    """The features whose descriptors are in a faiss index, in the order in which they were added.

    Ids are those that `index.search` returns: of an IndexIDMap the given ones, else positions. Features may lie in a
    file: arrays of `numpy.load(..., mmap_mode="r")`. InputError where index and features do not fit.
    """

    def __init__(self, index: Any, features: Features):
        if (index.ntotal, index.d) != tuple(features.descriptors.shape):
            raise InputError(
                f"an index of {index.ntotal} vectors of {index.d} numbers has not the descriptors "
                f"{tuple(features.descriptors.shape)}: give the features that were added to it"
            )
        has_ids = hasattr(index, "id_map")
        ids = faiss.vector_to_array(index.id_map) if has_ids else np.arange(index.ntotal)
        self._features, self._rows = features, {id: row for row, id in enumerate(ids.tolist())}

    def features(self, ids: list[Any]) -> dict[Any, tuple[Any, Any]]:
        known = [id for id in ids if id in self._rows]
        selected = self._features[[self._rows[id] for id in known]]
        return dict(zip(known, zip(*selected, strict=True), strict=True))
