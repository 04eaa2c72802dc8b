"""What keeps a large index quick: fragments are merged, and above ANN_FROM photos the search is approximate."""

import shutil
import warnings
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

from rrt.index_table import Address, array_of, engine, is_folder

if TYPE_CHECKING:
    from lancedb.query import LanceVectorQueryBuilder
    from lancedb.table import Table

MAX_FRAGMENTS = 20  # of less than 100,000 photos; each batch makes one, and merging writes all photos anew
ANN_FROM = 100_000  # photos
SAMPLE, DEPTH = 50, 100  # photos to measure recall by, and their nearest
KEPT = timedelta(days=1)  # old versions, where others may be writing


def nearest(table: "Table", descriptor: np.ndarray, number: int) -> "LanceVectorQueryBuilder":
    """The query for the photos nearest to a descriptor; approximate where there is an index of descriptors.

    The engine decides how many lists of that index it reads: with its limit of 20 it found 84 % among a million.
    """
    query: Any = table.search(descriptor, vector_column_name="descriptor")
    return query.distance_type("dot").maximum_nprobes(0).limit(number)


def keep_up(index: Address, table: "Table", has_changed: bool) -> float | None:
    """Merge fragments, and index descriptors; returns the recall where the approximate search has changed."""
    stats: Any = table.stats()
    is_alone = is_folder(index)  # by its lock
    has_room = not is_alone or shutil.disk_usage(index).free > stats["total_bytes"]
    if stats["fragment_stats"]["num_small_fragments"] > MAX_FRAGMENTS and has_room:
        with warnings.catch_warnings(action="ignore"):  # readers of other versions fail, as Index expects
            table.optimize(cleanup_older_than=timedelta(0) if is_alone else KEPT, delete_unverified=is_alone)
    if table.count_rows() <= ANN_FROM:
        return None
    if not table.list_indices():
        table.create_index("descriptor", config=engine().index.IvfFlat(distance_type="dot"))
    elif not has_changed:
        return None
    return recall(table)


def recall(table: "Table") -> float:
    """The part of the DEPTH nearest photos by exact search that the approximate one finds, for a SAMPLE of photos."""
    rows = np.random.default_rng(0).choice(table.count_rows(), SAMPLE, replace=False)
    sample = array_of(table.take_offsets(rows.tolist()).select(["descriptor"]).to_arrow(), "descriptor")
    found = 0
    for descriptor in sample:
        queries = (nearest(table, descriptor, DEPTH).select(["path", "_distance"]) for _ in range(2))
        approximate, exact = next(queries), next(queries).bypass_vector_index()
        found += len({*approximate.to_arrow()["path"].to_pylist()} & {*exact.to_arrow()["path"].to_pylist()})
    return found / (SAMPLE * DEPTH)
