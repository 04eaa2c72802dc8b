"""A picture of reranking: `python -m tools.before_after data/demo logs/demo/1/eval_frozen docs/reranking.jpg`.

Reads the scores of `eval_rerank.py` in its temp_dir, and the test photos of a data set folder.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from sop.splits import read_split
from utils.errors import InputError
from utils.io.atomic import atomic_write
from utils.retrieval.crossfit import fit_weights
from utils.retrieval.results import load_scores

QUERIES, COLUMNS, TILE, GAP, FRAME = 3, 5, 88, 14, 4
TITLES = ("query", "nearest by the global descriptor", "by logit, cosine and Chamfer similarity")
GREEN, RED = (40, 160, 60), (210, 50, 50)


def before_after(data: Path, evaluated: Path, picture: Path) -> None:
    """Draw queries whose first candidate reranking has corrected: the query, its first candidates before and after.

    Candidates of the query's class have a green frame, others a red one.
    """
    candidates, labels = load_scores(evaluated)
    after = fit_weights(candidates, labels, candidates.logits is not None).ranking.positions
    before, paths = candidates.neighbours, read_split(data, "test.txt").paths
    correct_before, correct_after = (labels.gallery[ranking[:, 0]] == labels.queries for ranking in (before, after))
    queries, num_lost = np.flatnonzero(correct_after & ~correct_before), int((correct_before & ~correct_after).sum())
    print(f"{len(queries)} of {len(before)} queries gained, {num_lost} lost, at rank 1")
    if not len(queries):
        raise InputError(f"{evaluated}: reranking has gained no query")
    queries = queries[np.linspace(0, len(queries) - 1, QUERIES + 2, dtype=int)[1:-1]]
    tile, width = TILE + GAP // 2, (2 * COLUMNS + 1) * (TILE + GAP // 2) + 2 * GAP
    sheet = Image.new("RGB", (width, 20 + QUERIES * tile), "white")
    draw = ImageDraw.Draw(sheet)
    lefts = (0, tile + GAP, (1 + COLUMNS) * tile + 2 * GAP)
    for left, title in zip(lefts, TITLES, strict=True):
        draw.text((left + 2, 4), title, "black")
    for row, query in enumerate(queries):
        tiles: list[tuple] = [(lefts[0], query, None)]
        for left, ranking in zip(lefts[1:], (before, after), strict=True):
            for column, image in enumerate(ranking[query, :COLUMNS]):
                is_match = labels.gallery[image] == labels.queries[query]
                tiles.append((left + column * tile, image, GREEN if is_match else RED))
        for left, image, colour in tiles:
            with Image.open(data / paths[image]) as photo:
                sheet.paste(photo.resize((TILE, TILE)), (left, 20 + row * tile))
            if colour:
                box = (left, 20 + row * tile, left + TILE - 1, 20 + row * tile + TILE - 1)
                draw.rectangle(box, outline=colour, width=FRAME)
    with atomic_write(picture) as file:
        sheet.save(file, "JPEG", quality=80)


if __name__ == "__main__":
    before_after(*map(Path, sys.argv[1:4]))
