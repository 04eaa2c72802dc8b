"""`python -m rrt`: index one's own photos, search them, compare two."""

import argparse
import ast
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rrt.index import Found, Index, own_reranker, read_content, update
from rrt.page import describe, page
from rrt.photos import find_photos
from rrt.picture import attention_picture
from rrt.pretrained import WHERE_FROM
from rrt.reranker import Reranker
from utils.errors import InputError, ReportedError
from utils.io.atomic import atomic_write
from utils.runtime.output import exit_code, unfailing_output
from utils.settings import expand_home
from utils.text import printable, shortened

MOST = 1_000_000  # photos of an answer
JSON_FORMAT = 1
JSON_HELP = f"""--json prints {{"format": {JSON_FORMAT}, "answers": [...]}} with an answer for each query:
  query  its absolute path
  found  photos, the best first, each with
    photo           its absolute path
    rank            from 1
    rank_by_cosine  that before reranking, from 1
    score           what ranks it: the logit, with --fusion the sum, with --rerank 0 the cosine;
                    null behind the photos that were rescored
    logit           of the matcher, or null
    cosine          of the descriptors, from -1 to 1"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    with unfailing_output() as lost:
        options = argparse.Namespace(**expand_home(vars(_parser().parse_args(arguments))))
        try:
            options.run(options)
        except (ReportedError, OSError) as error:
            print(printable(error), file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
        has_written = options.run is index or getattr(options, "html", None) is not None
        return 0 if has_written else exit_code(lost())


def index(options: argparse.Namespace) -> None:
    """Index photos."""
    if options.yes and not options.sync:
        raise InputError("--yes is of --sync: leave it out, or give both")
    left_out: Counter[str] = Counter()
    paths = find_photos(options.photos, left_out)
    done = update(options.to, paths, _model_for(options), progress=True, sync=options.sync, yes=options.yes)
    for line in done.problems:
        print(printable(line), file=sys.stderr)
    if left_out:
        print(_listed(left_out), file=sys.stderr)
    print(
        printable(options.to) + f" has {done.photos} photos: {done.added} were added, {done.updated} embedded anew, "
        f"{done.removed} taken out; {len(done.problems)} could not be read"
        + f", of which {done.kept} are kept as they were embedded before"
        * bool(done.kept)
    )
    if done.not_given:
        print(f"{done.not_given} of them are not among the photos given and are kept; --sync takes them out")


def _listed(left_out: Counter[str]) -> str:
    """How many files were left out, and their most frequent endings."""
    listed = [f"{shortened(printable(ending), 12) or 'none'} ({count})" for ending, count in left_out.most_common(5)]
    more = ", ..." * (len(left_out) > len(listed))
    return f"{left_out.total()} files were left out by their endings: {', '.join(listed)}{more}"


def search(options: argparse.Namespace) -> None:
    """Search an index."""
    if options.fusion and not options.rerank:
        raise InputError("--fusion is of reranking: leave it out, or --rerank 0")
    searched = Index(options.index)
    queries = [Path(query) for query in options.queries]
    found = searched.search(searched.reranker.embed(queries), options.top, options.rerank, options.fusion)
    if options.html is not None:
        with atomic_write(options.html) as file:
            file.write(page(queries, found).encode())
        print(f"{printable(options.html)} shows what was found: open it in a browser")
    elif options.json:
        print(json.dumps(_as_json(queries, found), indent=1, allow_nan=False))
    else:
        for query, photos in zip(queries, found, strict=True):
            print(printable(query))
            for rank, photo in enumerate(photos, start=1):
                print(f"{rank:4}. {describe(photo)}  {printable(photo.photo)}")


def _as_json(queries: Sequence[Path], found: Sequence[Sequence[Found]]) -> dict[str, Any]:
    """What JSON_HELP describes."""
    answers = [
        {
            "query": str(query.absolute()),
            "found": [
                {
                    "photo": photo.photo,
                    "rank": rank,
                    "rank_by_cosine": photo.rank_by_cosine,
                    "score": photo.score,
                    "logit": photo.logit,
                    "cosine": photo.cosine,
                }
                for rank, photo in enumerate(photos, start=1)
            ],
        }
        for query, photos in zip(queries, found, strict=True)
    ]
    return {"format": JSON_FORMAT, "answers": answers}


def compare(options: argparse.Namespace) -> None:
    """Score a pair."""
    reranker = _model(options)
    (match,) = reranker.rank(options.a, [options.b])
    print(f"logit {match.logit:.3f}, cosine {match.cosine:.3f}")
    if options.picture is not None:
        picture = attention_picture(reranker, options.a, options.b)
        with atomic_write(options.picture) as file:
            picture.save(file, "PNG")
        print(f"{printable(options.picture)}: the brighter a patch, the more the matcher reads from it")


def _model(options: argparse.Namespace) -> Reranker:
    if options.model is None:
        raise InputError(f"no model was given: --model takes {WHERE_FROM}")
    return Reranker.from_pretrained(options.model, crop_size=options.crop_size, **dict(options.setting))


def _model_for(options: argparse.Namespace) -> Reranker:
    """The model that was given, or the index's own."""
    if options.model is not None or not (options.to / "index.json").exists():
        return _model(options)
    if options.crop_size is not None or options.setting:
        raise InputError("--crop-size and --setting are of a --model: give it, or leave them out")
    return own_reranker(options.to, read_content(options.to).model)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m rrt", description="Search one's own photos.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    model = argparse.ArgumentParser(add_help=False)
    model.add_argument("--model", help=WHERE_FROM)
    model.add_argument("--crop-size", type=int, metavar="PIXELS", help="of a model that does not say it, where not 224")
    model.add_argument(
        "--setting", type=_setting, action="append", default=[], metavar="NAME=VALUE", help="of a model that says none"
    )

    of_index = commands.add_parser("index", parents=[model], help="embed photos, or what is new or changed of them")
    of_index.add_argument("photos", nargs="+", metavar="PHOTOS", help="folders, photos, or a list NAME.txt of paths")
    of_index.add_argument("--to", type=Path, required=True, metavar="INDEX", help="folder; photos are added to it")
    of_index.add_argument("--sync", action="store_true", help="take out the index's photos that PHOTOS do not have")
    of_index.add_argument(
        "--yes", action="store_true", help="even more than one in ten, and those of folders that are empty now"
    )
    of_index.set_defaults(run=index)

    of_search = commands.add_parser(
        "search",
        help="find the photos most like others",
        epilog=JSON_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    of_search.add_argument("index", type=Path, metavar="INDEX")
    of_search.add_argument("queries", nargs="+", metavar="QUERY", help="photos")
    of_search.add_argument("--top", type=_number, default=10, metavar="N", help="photos for each query; 10")
    of_search.add_argument(
        "--rerank", type=_number, default=100, metavar="N", help="rescore the first N: 100, or 0 for none"
    )
    of_search.add_argument(
        "--fusion", type=float, nargs=2, metavar=("W", "V"), help="rerank by logit + W * cosine + V * chamfer"
    )
    outputs = of_search.add_mutually_exclusive_group()
    outputs.add_argument("--html", type=Path, metavar="FILE", help="a page to look at")
    outputs.add_argument("--json", action="store_true", help="print JSON, described below")
    of_search.set_defaults(run=search)

    of_compare = commands.add_parser("compare", parents=[model], help="score a pair of photos")
    of_compare.add_argument("a", metavar="QUERY")
    of_compare.add_argument("b", metavar="CANDIDATE")
    of_compare.add_argument("--picture", type=_png, metavar="FILE", help="PNG of what the matcher reads in them")
    of_compare.set_defaults(run=compare)
    return parser


def _setting(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def _png(text: str) -> Path:
    if Path(text).suffix.lower() != ".png":
        raise argparse.ArgumentTypeError(f"{text} is no name of a PNG: choose one that ends in .png")
    return Path(text)


def _number(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or int(text) > MOST:
        raise argparse.ArgumentTypeError(f"{text} is no whole number from 0 to {MOST:,}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
