"""The gallery of an evaluation: a sample of queries, their neighbours in each ranking, and attention of pairs."""

from typing import Any

import numpy as np
from tqdm import tqdm

from report.attention import Attention
from report.evaluated import Evaluated, read_evaluated
from report.photos import Photos
from report.sample import OUTCOMES, SEED, draw, outcomes
from utils.errors import InputError
from utils.io.disk import md5
from utils.io.ranking_names import FITTED
from utils.logs.json_reader import nested
from utils.logs.runs import Run
from utils.text import printable

NEIGHBOURS = 10  # shown for each query and ranking
# Measured on logits of -6.5 to 6.8: at most 0.01 by fp16, which rounds as tf32 does, and 0.08 by bf16
LOGIT_ROUNDING = {"fp32": 0.001, "tf32": 0.05, "fp16": 0.05, "bf16": 0.3}


def gallery(
    run: Run, photos: Photos, num_queries: int, num_pairs: int, max_photo_bytes: int, max_attention_bytes: int
) -> dict[str, Any]:
    """A gallery of at most `num_queries` queries, and `num_pairs` pairs with attention. Its photos go to `photos`.

    InputError where files of the evaluation are missing or of another run.
    """
    evaluated = read_evaluated(run)
    ranks, titles = evaluated.ranks, _titles(evaluated)
    num_correct = {name: int((of_queries == 0).sum()) for name, of_queries in ranks.items() if name != "global"}
    best = max(num_correct, key=lambda name: num_correct[name])
    order = draw(outcomes(ranks["global"], ranks[best]))
    max_size = photos.size + max_photo_bytes
    queries: list[dict[str, Any]] = []
    for query in tqdm(order[:num_queries], desc="Photos", disable=None):
        if photos.size > max_size:
            break
        queries.append(_query(evaluated, query, photos))
    views, notes = _add_attention(evaluated, queries, best, num_pairs, max_attention_bytes)
    return {
        "folder": printable(run.folder),
        "files": [{"path": printable(path), "md5": md5(path)} for path in evaluated.files],
        "sample": _describe_sample(len(queries), len(order), titles[best]),
        "notes": notes,
        "rankings": [{"name": name, "title": titles[name]} for name in ranks],
        "best": best,
        "counts": {
            name: np.bincount(outcomes(ranks["global"], of_queries), minlength=len(OUTCOMES)).tolist()
            for name, of_queries in ranks.items()
        },
        "columns": evaluated.candidates.neighbours.shape[1],
        "queries": queries,
        "views": views,
    }


def _titles(evaluated: Evaluated) -> dict[str, str]:
    """Titles of rankings: their names in all tables, with the weights of those that have fixed ones."""
    return {name: name if name in FITTED else title for name, title in evaluated.rankings.titles.items()}


def _describe_sample(num_shown: int, num_queries: int, title: str) -> str:
    if num_shown == num_queries:
        return f"All {num_queries:,} queries, in random order (seed {SEED})."
    return (
        f"{num_shown:,} of {num_queries:,} queries, drawn at random (seed {SEED}): in turn one that is gained, lost, "
        f"still wrong and still right by “{title}”, while there are any left. So the proportions here are not those of "
        f"all queries; the counts below are."
    )


def _query(evaluated: Evaluated, query: int, photos: Photos) -> dict[str, Any]:
    """A query, and the union of its first neighbours in all rankings, with their ranks in each, from 1."""
    rankings = [ranking.positions[query] for ranking in evaluated.rankings.rankings.values()]
    candidates = evaluated.candidates
    column_of = {int(image): column for column, image in reversed([*enumerate(candidates.neighbours[query])])}
    neighbours = []
    for image in dict.fromkeys(int(image) for ranking in rankings for image in ranking[:NEIGHBOURS]):
        column = column_of[image]
        scores = {
            name: round(float(part[query, column]), 4)
            for name, part in zip(candidates._fields[1:], candidates[1:], strict=True)
            if part is not None and column < part.shape[1]
        }
        neighbours.append(
            {
                "photo": photos.index(evaluated.data, evaluated.gallery.paths[image]),
                "image": image,
                "class": evaluated.gallery.classes[image],
                "hit": bool(evaluated.labels.gallery[image] == evaluated.labels.queries[query]),
                "ranks": [int((ranking == image).argmax()) + 1 for ranking in rankings],
                **scores,
            }
        )
    return {
        "photo": photos.index(evaluated.data, evaluated.queries.paths[query]),
        "number": query,
        "class": evaluated.queries.classes[query],
        "ranks": [None if np.isinf(ranks[query]) else int(ranks[query]) + 1 for ranks in evaluated.ranks.values()],
        "neighbours": neighbours,
    }


def _logit_rounding(run: Run) -> float:
    """The largest difference by rounding between a run's logits and those of exact decoding in float32 on the CPU."""
    if nested(run.config, "dataset", "decode") not in (None, "exact"):
        return float("inf")
    precision = run.config.get("precision") or ("fp32" if run.device == "cpu" else "tf32")
    return LOGIT_ROUNDING.get(str(precision), float("inf"))


def _first_pairs(queries: list[dict[str, Any]], rankings: list[int]) -> list[tuple[int, dict[str, Any]]]:
    """The queries' numbers, each with a neighbour of rank 1 in any of the rankings."""
    return [
        (query["number"], neighbour)
        for query in queries
        for neighbour in query["neighbours"]
        if any(neighbour["ranks"][ranking] == 1 for ranking in rankings)
    ]


def _add_attention(
    evaluated: Evaluated, queries: list[dict[str, Any]], ranking: str, num_pairs: int, max_bytes: int
) -> tuple[list[str], list[str]]:
    """Add attention to the first neighbours of queries, in the global ranking and in `ranking`.

    Returns the views of the photos, and notes for the page.
    """
    if evaluated.candidates.logits is None:
        return [], ["No attention: the candidates were scored without the matcher (scorer=chamfer)."]
    try:
        attention = Attention(evaluated)
    except InputError as error:
        return [], [printable(f"No attention: {error}.")]
    names = list(evaluated.ranks)
    pairs = _first_pairs(queries, [names.index("global"), names.index(ranking)])
    rounding = _logit_rounding(evaluated.run)
    differences, problems, changed = [], [], []
    for query, neighbour in tqdm(pairs[:num_pairs], desc="Attention", disable=None):
        if attention.size > max_bytes:
            break
        paths = evaluated.queries.paths[query], evaluated.gallery.paths[neighbour["image"]]
        try:
            pair = attention.of_pair(*(evaluated.data / path for path in paths))
        except InputError as error:
            problems.append(str(error))
            continue
        difference = abs(pair["logit"] - neighbour["logits"])
        if difference > rounding:
            changed.append(f"{paths[0]} and {paths[1]}, by {difference:.4f}")
            continue
        neighbour["attention"] = pair
        differences.append(difference)
    title = _titles(evaluated)[ranking]
    notes = [
        f"Attention is shown for {len(differences)} of {len(pairs)} pairs: the first queries, each with its first "
        f"neighbour in the global ranking and by “{title}”. It is recomputed from {attention.checkpoint} on the CPU in "
        f"float32; logits differ from those in scores.npz by at most {max(differences, default=0):.4f}."
    ]
    if changed:
        notes.insert(
            0,
            f"WARNING: {len(changed)} pairs are not what was evaluated: their recomputed logits differ by more than "
            f"rounding ({changed[0]}). Photos have been replaced since; these pairs have no attention.",
        )
    if problems:
        notes.append(f"{len(problems)} pairs have no attention, as a photo cannot be read: {problems[0]}.")
    return attention.views, [printable(note) for note in notes]
