"""The commands of `python -m rrt`."""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from models.costs import print_costs
from rrt.arguments import CASCADE, FITTED, Fusion
from rrt.index import Index, Result, update
from rrt.index_ranks import on_rank0
from rrt.index_table import content_of, open_table, own_reranker
from rrt.page import page, scores_text
from rrt.photos import find_photos
from rrt.picture import pair_picture
from rrt.reranker import Reranker
from rrt.words import JSON_FORMAT, WHERE_FROM
from utils.errors import InputError
from utils.io.atomic import atomic_write
from utils.text import printable, shortened


def index(options: argparse.Namespace) -> None:
    """Index photos, where torchrun has started several ranks with the help of all."""
    on_rank0(lambda: _index(options))


def _index(options: argparse.Namespace) -> None:
    if options.yes and not options.sync:
        raise InputError("--yes needs --sync: leave it out, or give both")
    left_out: Counter[str] = Counter()
    paths = find_photos(options.photos, left_out)
    reranker = _model_for(options)
    if options.backbone is not None:
        print_costs(reranker.network, reranker.crop_size, len(paths), scorer="chamfer")
        print(reranker)
    updated = update(
        options.to,
        paths,
        reranker,
        progress=True,
        sync=options.sync,
        yes=options.yes,
        metadata=options.metadata,
        maps=options.maps,
    )
    for line in updated.problems:
        print(printable(line), file=sys.stderr)
    if left_out:
        endings = ((shortened(printable(ending), 12), count) for ending, count in left_out.most_common(5))
        listed = ", ".join(f"{ending or 'none'} ({count})" for ending, count in endings)
        print(f"{left_out.total()} files were skipped by their endings; most frequent: {listed}", file=sys.stderr)
    print(
        printable(options.to)
        + f" has {updated.photos} photos: {updated.added} added, {updated.updated} embedded again, "
        f"{updated.removed} removed; {len(updated.problems)} could not be read"
        + f", of which {updated.kept} are kept as they were embedded before"
        * bool(updated.kept)
    )
    if updated.not_given:
        print(f"{updated.not_given} of them are not among PHOTOS and are kept; --sync removes them")
    if updated.unknown:
        print(f"{updated.unknown} lines of {printable(options.metadata)} name photos that the index does not have")
    if updated.recall is not None:
        print(f"search is approximate now: it finds {100 * updated.recall:.1f} % of the nearest 100, on a sample")


def search(options: argparse.Namespace) -> None:
    """Search an index."""
    if (options.fusion or options.cascade) and options.rerank == 0:
        raise InputError("--fusion and --cascade need reranking: leave them out, or --rerank 0")
    photos = Index(options.index)
    queries = [Path(query) for query in options.queries]
    num_candidates = photos.num_candidates() if options.rerank is None else options.rerank
    fusion = options.fusion or (CASCADE if options.cascade else FITTED)
    results = photos.search(photos.reranker.embed(queries), options.top, num_candidates, fusion, options.where)
    ranking = ranking_text(photos.reranker, num_candidates, fusion)
    if options.html is not None:
        with atomic_write(options.html) as file:
            file.write(page(queries, results, ranking).encode())
        print(f"{printable(options.html)} shows the results: open it in a browser")
    elif options.json:
        print(json.dumps(_as_json(ranking, queries, results), indent=1, allow_nan=False))
    else:
        print(printable(ranking))
        for query, of_query in zip(queries, results, strict=True):
            print(printable(query))
            for rank, result in enumerate(of_query, start=1):
                print(f"{rank:4}. {scores_text(result)}  {printable(result.photo)}")


def ranking_text(reranker: Reranker, num_candidates: int, fusion: Fusion) -> str:
    """What photos are ranked by, in words."""
    if not num_candidates:
        return "ranked by cosine"
    weights = reranker.weights(fusion, num_candidates)
    fitted = reranker.fusion_of(weights)
    origin = f", fitted on {fitted.fitted_on}" if fitted else ""
    return f"reranked by {weights}{origin}"


def _as_json(ranking: str, queries: Sequence[Path], results: Sequence[Sequence[Result]]) -> dict[str, Any]:
    """The object that JSON_HELP describes."""
    fields = [name for name in Result._fields if name != "stamp"]
    answers = [
        {
            "query": str(query.absolute()),
            "found": [
                {"rank": rank} | {name: getattr(result, name) for name in fields}
                for rank, result in enumerate(of_query, start=1)
            ],
        }
        for query, of_query in zip(queries, results, strict=True)
    ]
    return {"format": JSON_FORMAT, "ranking": ranking, "answers": answers}


def compare(options: argparse.Namespace) -> None:
    """Score a pair."""
    reranker = _model(options)
    (match,) = reranker.rank(options.a, [options.b])
    parts = [] if match.probability is None else [f"same product: {match.probability:.2f}"]
    if match.logit is not None:
        parts.append(f"logit {match.logit:.3f}")
    elif not parts:
        parts.append(f"score {match.score:.3f}")
    print(", ".join([*parts, f"cosine {match.cosine:.3f}"]))
    calibration = reranker.fusion and reranker.fusion.calibration
    if calibration:
        verdict = "match" if match.score > calibration.threshold else "no match"
        print(f"{verdict}, at a false match rate of {100 * calibration.false_match_rate:g} % among candidates")
    if options.picture is not None:
        picture = pair_picture(reranker, options.a, options.b)
        with atomic_write(options.picture) as file:
            picture.save(file, "PNG")
        attention = "; the brighter a patch, the more the matcher attends to it" * reranker.matcher_trained
        print(f"{printable(options.picture)}: lines join the patches that match best{attention}")


def _model(options: argparse.Namespace) -> Reranker:
    if options.backbone is not None:
        if options.model is not None or options.setting:
            raise InputError("--backbone makes a network without training: leave --model and --setting out")
        return Reranker.from_backbone(options.backbone, options.weights, options.crop_size)
    if options.weights is not None:
        raise InputError("--weights are a --backbone's: give both, or neither")
    if options.model is None:
        raise InputError(f"no model was given: --model takes {WHERE_FROM}")
    return Reranker.from_pretrained(options.model, crop_size=options.crop_size, **dict(options.setting))


def _model_for(options: argparse.Namespace) -> Reranker:
    """The model of --model, or the index's own."""
    table = open_table(options.to)
    if options.model is not None or options.backbone is not None or table is None:
        return _model(options)
    if options.crop_size is not None or options.setting or options.weights is not None:
        raise InputError("--crop-size, --setting and --weights need --model or --backbone: give it, or leave them out")
    return own_reranker(options.to, content_of(table).model)
