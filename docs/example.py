"""Own photos -> index -> search -> rerank -> a picture of the best pair: `python -m docs.example PHOTOS MODEL OUT`.

PHOTOS is a folder with photos, MODEL what `Reranker.from_pretrained` takes, OUT a folder for the index and picture.png.
"""

import argparse
import sys
from pathlib import Path

from rrt import InputError, Reranker
from rrt.index import Index, update
from rrt.photos import find_photos
from rrt.picture import pair_picture


def main(photos: str, model: str, out: str) -> list[str]:
    """Search the index for the first photo; returns the paths of the five best others."""
    paths = find_photos([photos])
    reranker = Reranker.from_pretrained(model)

    # index: a second call embeds new and changed photos only, and goes on where it was interrupted
    done = update(Path(out, "index"), paths, reranker, progress=True)
    print(f"{done.photos} photos, {done.added} of them new", *done.problems, sep="\n")

    # search: by the cosine of the global descriptors
    index, query = Index(Path(out, "index")), paths[0]
    (nearest,) = index.search(reranker.embed(query), top=100)
    candidates = [found.photo for found in nearest if found.photo != str(query)]
    if not candidates:
        raise InputError(f"{photos} has no photo but {query}: give a folder with more, which are searched for it")

    # rerank: by the matcher; index.search(..., rerank=100) does the same from the index's own maps
    matches = reranker.rank(query, candidates, top_k=5)
    for match in matches:
        print(f"{match.score:.3f}  {candidates[match.index]}")

    # picture: what the matcher reads in the query and its best match
    pair_picture(reranker, query, candidates[matches[0].index]).save(Path(out, "picture.png"))
    return [candidates[match.index] for match in matches]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m docs.example")
    for name in ("PHOTOS", "MODEL", "OUT"):
        parser.add_argument(name)
    try:
        main(*vars(parser.parse_args()).values())
    except InputError as error:
        sys.exit(str(error))
