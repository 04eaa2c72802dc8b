"""The gallery of an evaluation: its sample of queries, their neighbours in each ranking, and attention of pairs."""

from contextlib import suppress
from typing import Any

import numpy as np
from tqdm import tqdm

from report.attention import Attention
from report.evaluated import Evaluated, read_evaluated
from report.photos import Photos
from report.sample import OUTCOMES, SEED, draw, outcomes
from utils.errors import InputError
from utils.io.disk import md5
from utils.logs.json_reader import nested
from utils.logs.runs import Run
from utils.text import printable

NEIGHBOURS = 10  # of each query and ranking
# Half precision changes logits of -6.5 to 6.8 by at most 0.01 (fp16, which rounds as tf32 does) and 0.08 (bf16).
LOGIT_ROUNDING = {"fp32": 0.001, "tf32": 0.05, "fp16": 0.05, "bf16": 0.3}


def gallery(
    run: Run, photos: Photos, num_queries: int, num_pairs: int, photo_room: int, attention_room: int
) -> dict[str, Any]:
    """A gallery of at most so many queries, and pairs with attention; rooms are bytes that may be filled.

    Its photos go to `photos`. InputError where the evaluation's own files cannot be had.
    """
    evaluated = read_evaluated(run)
    ranks, titles = evaluated.ranks, evaluated.found.titles
    recalls = {name: int((found == 0).sum()) for name, found in ranks.items() if name != "global"}
    best = max(recalls, key=lambda name: recalls[name])
    order = draw(outcomes(ranks["global"], ranks[best]))
    full = photos.size + photo_room
    queries: list[dict[str, Any]] = []
    for query in tqdm(order[:num_queries], desc="Photos", disable=None):
        if photos.size > full:
            break
        queries.append(_query(evaluated, query, photos))
    views, notes = _add_attention(evaluated, queries, best, num_pairs, attention_room)
    return {
        "folder": printable(run.folder),
        "files": [{"path": printable(path), "md5": md5(path)} for path in evaluated.files],
        "sample": _describe_sample(len(queries), len(order), titles[best], len(queries) < min(num_queries, len(order))),
        "notes": _newer_photos(evaluated) + notes,
        "rankings": [{"name": name, "title": titles[name]} for name in ranks],
        "best": best,
        "counts": {
            name: np.bincount(outcomes(ranks["global"], found), minlength=len(OUTCOMES)).tolist()
            for name, found in ranks.items()
        },
        "columns": evaluated.candidates.neighbours.shape[1],
        "queries": queries,
        "views": views,
    }


def _describe_sample(shown: int, total: int, title: str, is_full: bool) -> str:
    if shown == total:
        return f"All {total:,} queries, in random order (seed {SEED})."
    limit = " More photos would make the page too large." if is_full else ""
    return (
        f"{shown:,} of {total:,} queries, drawn at random (seed {SEED}): in turn one that is gained, lost, still wrong "
        f"and still right by “{title}”, as long as there are such. So their shares here are not those among all "
        f"queries, which the counts below name.{limit}"
    )


def _query(evaluated: Evaluated, query: int, photos: Photos) -> dict[str, Any]:
    """A query and all that are among its first neighbours in any ranking, with their ranks in each, from 1."""
    rankings = [ranking.positions[query] for ranking in evaluated.found.rankings.values()]
    candidates = evaluated.candidates
    columns = {int(image): column for column, image in reversed([*enumerate(candidates.neighbours[query])])}
    neighbours = []
    for image in dict.fromkeys(int(image) for ranking in rankings for image in ranking[:NEIGHBOURS]):
        column = columns[image]
        scores = {
            name: round(float(part[query, column]), 4)
            for name, part in zip(candidates._fields[1:], candidates[1:], strict=True)
            if part is not None and column < part.shape[1]
        }
        neighbours.append(
            {
                "photo": photos.number(evaluated.data / evaluated.gallery.paths[image]),
                "image": image,
                "class": evaluated.gallery.classes[image],
                "hit": bool(evaluated.labels.gallery[image] == evaluated.labels.queries[query]),
                "ranks": [int((ranking == image).argmax()) + 1 for ranking in rankings],
                **scores,
            }
        )
    return {
        "photo": photos.number(evaluated.data / evaluated.queries.paths[query]),
        "number": query,
        "class": evaluated.queries.classes[query],
        "ranks": [None if np.isinf(found[query]) else int(found[query]) + 1 for found in evaluated.ranks.values()],
        "neighbours": neighbours,
    }


def _logit_rounding(run: Run) -> float:
    """By how much a logit computed anew, of exactly decoded photos in float32 on the CPU, may differ from a run's."""
    if nested(run.config, "dataset", "decode") not in (None, "exact"):
        return float("inf")
    precision = run.config.get("precision") or ("fp32" if run.device == "cpu" else "tf32")
    return LOGIT_ROUNDING.get(str(precision), float("inf"))


def _newer_photos(evaluated: Evaluated) -> list[str]:
    """A line on photos that are newer than the evaluation, if there are any."""
    paths = dict.fromkeys(evaluated.queries.paths + evaluated.gallery.paths)
    newer = []
    for path in paths:
        with suppress(OSError, ValueError):  # it is said where the photo would be shown
            if evaluated.run.start and (evaluated.data / path).stat().st_mtime > evaluated.run.start.timestamp():
                newer.append(path)
    if not newer:
        return []
    line = (
        f"WARNING: {len(newer)} of {len(paths)} photos are newer than the evaluation ({newer[0]} for one): what is "
        "shown of them may not be what was ranked."
    )
    return [printable(line)]


def _add_attention(
    evaluated: Evaluated, queries: list[dict[str, Any]], ranking: str, num_pairs: int, room: int
) -> tuple[list[str], list[str]]:
    """Add attention to the first neighbours of queries, in the global ranking and in `ranking`; returns the views of
    the photos, and lines on what there is."""
    if evaluated.candidates.logits is None:
        return [], ["No attention: the candidates were scored without the matcher (scorer=chamfer)."]
    try:
        attention = Attention(evaluated)
    except InputError as error:
        return [], [printable(f"No attention: {error}.")]
    names = list(evaluated.ranks)
    columns = names.index("global"), names.index(ranking)
    pairs = [
        (query["number"], neighbour)
        for query in queries
        for neighbour in query["neighbours"]
        if any(neighbour["ranks"][column] == 1 for column in columns)
    ]
    rounding = _logit_rounding(evaluated.run)
    differences, problems, changed = [], [], []
    for query, neighbour in tqdm(pairs[:num_pairs], desc="Attention", disable=None):
        if attention.size > room:
            break
        paths = evaluated.queries.paths[query], evaluated.gallery.paths[neighbour["image"]]
        try:
            shown = attention.of_pair(*(evaluated.data / path for path in paths))
        except InputError as error:
            problems.append(str(error))
            continue
        difference = abs(shown["logit"] - neighbour["logits"])
        if difference > rounding:
            changed.append(f"{paths[0]} and {paths[1]}, by {difference:.4f}")
            continue
        neighbour["attention"] = shown
        differences.append(difference)
    title = evaluated.found.titles[ranking]
    notes = [
        f"Attention is kept for {len(differences)} of {len(pairs)} pairs: of the first queries, each with its first "
        f"neighbour in the global ranking and by “{title}”. It is computed anew, on the CPU in float32, from "
        f"{attention.checkpoint}; logits differ from those in scores.npz by at most {max(differences, default=0):.4f}."
    ]
    if changed:
        notes.insert(
            0,
            f"WARNING: {len(changed)} pairs are not what was evaluated: their logits, computed anew, differ by more "
            f"than rounding ({changed[0]}). Photos have been replaced since; these pairs have no attention.",
        )
    if problems:
        notes.append(f"{len(problems)} pairs have no attention, as a photo cannot be shown: {problems[0]}.")
    return attention.views, [printable(note) for note in notes]
