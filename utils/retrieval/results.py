"""The files of an evaluation: neighbour files, `per_query.csv` and, of reranking, `scores.npz`."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.errors import InputError
from utils.io.atomic import atomic_write
from utils.io.disk import check_stored_zip, md5, open_regular_file
from utils.io.neighbours import PER_QUERY, save_neighbours
from utils.io.ranking_names import rank_column
from utils.retrieval.measures import Measures
from utils.retrieval.ranking import Candidates, Ranking
from utils.runtime.ranks import is_main_process


class Labels(NamedTuple):
    """Classes of queries (n,) and gallery (m,), numbers from 0; `is_self_search`: the queries are the gallery."""

    queries: np.ndarray
    gallery: np.ndarray
    is_self_search: bool

    @classmethod
    def of(cls, query_loader, gallery_loader) -> "Labels":
        return cls(query_loader.dataset.labels, (gallery_loader or query_loader).dataset.labels, gallery_loader is None)


def save_evaluation(folder: Path | str, queries, written: Ranking, measures: Mapping[str, Measures]) -> None:
    """Write the neighbour files of the ranking `written`, and `per_query.csv` of all measured rankings, on rank 0.

    `queries` is their image set, with `paths` and `classes`.
    """
    if not is_main_process():
        return
    save_neighbours(folder, *written)
    ranks = {name: measured.ranks for name, measured in measures.items()}
    write_per_query(Path(folder) / PER_QUERY, queries.paths, queries.classes, ranks)


def write_per_query(path: Path, paths: Sequence[str], classes: Sequence[int], ranks: Mapping[str, np.ndarray]) -> None:
    """Write a table with a row per query: position, path, class, and the rank of the first match in each ranking.

    `ranks` count from 0, infinite without a match. The file counts from 1, empty without a match; `rank_column` names
    its columns.
    """
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("query", "path", "class", *map(rank_column, ranks)))
    for query, row in enumerate(zip(paths, classes, *ranks.values(), strict=True)):
        table.writerow((query, *row[:2], *("" if np.isinf(rank) else int(rank) + 1 for rank in row[2:])))
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())


NAME = "scores.npz"  # of the file


def save_scores(folder: Path | str, candidates: Candidates, labels: Labels) -> None:
    """Write `scores.npz` into a folder, atomically."""
    arrays = {name: array for name, array in candidates._asdict().items() if array is not None}
    arrays |= {
        "query_labels": labels.queries,
        "gallery_labels": labels.gallery,
        "is_self_search": labels.is_self_search,
    }
    with atomic_write(Path(folder) / NAME) as file:
        np.savez(file, **arrays)


def keep_scores(folder: Path | str, candidates: Candidates, labels: Labels) -> str | None:
    """`save_scores` on rank 0; returns the file's MD5 sum, by which a run's scores are known as its own.

    None on other ranks, and where the file cannot be written: the error is printed, and the evaluation goes on.
    """
    if not is_main_process():
        return None
    try:
        save_scores(folder, candidates, labels)
    except InputError as error:
        print(f"scores are not kept: {error}")
        return None
    return md5(Path(folder) / NAME)


def load_scores(folder: Path | str) -> tuple[Candidates, Labels]:
    """Read `scores.npz`; InputError if it is missing or malformed."""
    path = Path(folder) / NAME
    try:
        with open_regular_file(path) as opened:
            check_stored_zip(opened)
            opened.seek(0)
            with np.load(opened, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
        labels = Labels(arrays["query_labels"], arrays["gallery_labels"], bool(arrays["is_self_search"]))
        candidates = Candidates(arrays["neighbours"], arrays["cosines"], arrays["chamfer"], arrays.get("logits"))
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist: run eval_rerank.py with this temp_dir first") from error
    except Exception as error:  # a hostile or damaged file can raise anything
        raise InputError(f"{path} cannot be read ({error}): run eval_rerank.py with this temp_dir again") from error
    shape = candidates.cosines.shape
    indices = candidates.neighbours, labels.queries, labels.gallery
    scores = [array for array in candidates[1:] if array is not None]
    if (
        any(array.shape != shape or array.dtype != np.float32 for array in scores)
        or [array.ndim for array in (candidates.cosines, *indices)] != [2, 2, 1, 1]
        or any(array.dtype.kind not in "iu" for array in indices)
        or candidates.neighbours.shape[:1] != labels.queries.shape
        or shape[:1] != labels.queries.shape
        or not 0 < shape[1] <= candidates.neighbours.shape[1]
        or not len(labels.queries)
        or min(candidates.neighbours.min(), labels.queries.min(), labels.gallery.min(initial=0)) < 0
        or candidates.neighbours.max() >= len(labels.gallery)
        or max(labels.queries.max(), labels.gallery.max()) >= len(labels.queries) + len(labels.gallery)
        or not all(np.isfinite(array).all() for array in scores)
    ):
        raise InputError(
            f"{path} holds arrays that do not belong together: run eval_rerank.py with this temp_dir again"
        )
    return candidates, labels
