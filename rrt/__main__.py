"""`python -m rrt`, or `rrt` where it is installed: index one's own photos, search them, compare two."""

import argparse
import ast
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rrt import __version__
from rrt.words import JSON_FORMAT, MAPS, WHERE_FROM
from utils.errors import ReportedError
from utils.runtime.output import exit_code, unfailing_output
from utils.settings import expand_home
from utils.text import printable

JSON_HELP = f"""--json prints {{"format": {JSON_FORMAT}, "ranking": ..., "answers": [...]}}: in words what
photos are reranked by, and for each query an answer:
  query  its absolute path
  found  photos, the best first, each with
    photo           its absolute path
    rank            from 1
    rank_by_cosine  that before reranking, from 1
    score           what ranks it; null behind the reranked photos
    logit           of the matcher, or null
    cosine          of the descriptors, from -1 to 1
    probability     that it shows the query's product, or null where scores are not calibrated,
                    of binary maps, or without logit in a cascade"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    with unfailing_output() as output_error:
        options = argparse.Namespace(**expand_home(vars(_parser().parse_args(arguments))))
        try:
            from rrt import commands  # what it imports takes seconds: after the arguments are known to be right

            getattr(commands, options.run)(options)
        except (ReportedError, OSError) as error:
            print(printable(error), file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
        has_written = options.run == "index" or getattr(options, "html", None) is not None
        return 0 if has_written else exit_code(output_error())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m rrt", description="Search one's own photos.")
    parser.add_argument("--version", action="version", version=f"rrt {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    model = argparse.ArgumentParser(add_help=False)
    model.add_argument("--model", help=WHERE_FROM)
    model.add_argument(
        "--backbone", metavar="NAME", help="no model but a pretrained backbone, such as tf_efficientnet_lite0 (timm's)"
    )
    model.add_argument("--weights", type=Path, metavar="FILE", help="of the backbone, in place of its published ones")
    model.add_argument("--crop-size", type=int, metavar="PIXELS", help="of a model without its own crop size; 224")
    model.add_argument(
        "--setting",
        type=_setting,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="of a model without its own settings",
    )

    of_index = commands.add_parser("index", parents=[model], help="embed new and changed photos")
    of_index.add_argument("photos", nargs="+", metavar="PHOTOS", help="folders, photos, or a list NAME.txt of paths")
    of_index.add_argument("--to", required=True, metavar="INDEX", help="folder or s3://...; photos are added to it")
    of_index.add_argument(
        "--metadata",
        type=Path,
        metavar="FILE",
        help="CSV with a line of names, photos' paths first, for search --where",
    )
    of_index.add_argument(
        "--maps",
        choices=MAPS,
        help="how a new index keeps local maps: float16; int8, half the bytes; binary, a tenth, without a matcher",
    )
    of_index.add_argument("--sync", action="store_true", help="remove the index's photos that are not among PHOTOS")
    of_index.add_argument(
        "--yes", action="store_true", help="even more than one in ten, and those of folders that are empty now"
    )
    of_index.set_defaults(run="index")

    of_search = commands.add_parser(
        "search",
        help="find the photos most like others",
        epilog=JSON_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    of_search.add_argument("index", metavar="INDEX")
    of_search.add_argument("queries", nargs="+", metavar="QUERY", help="photos")
    of_search.add_argument(
        "--where", metavar="CONDITION", help="search photos for which it holds: \"category = 'chair'\""
    )
    of_search.add_argument("--top", type=_number, default=10, metavar="N", help="photos for each query; 10")
    of_search.add_argument(
        "--rerank", type=_number, metavar="N", help="rerank the first N: as many as the model's weights are for, or 100"
    )
    rankings = of_search.add_mutually_exclusive_group()
    rankings.add_argument(
        "--fusion",
        type=float,
        nargs=2,
        metavar=("W", "V"),
        help="rerank by logit + W * cosine + V * chamfer in place of the model's own weights; 0 0: by the logit",
    )
    rankings.add_argument(
        "--cascade", action="store_true", help="by the model's own weights, in a cascade: the matcher scores few photos"
    )
    outputs = of_search.add_mutually_exclusive_group()
    outputs.add_argument("--html", type=Path, metavar="FILE", help="a page to look at")
    outputs.add_argument("--json", action="store_true", help="print JSON, described below")
    of_search.set_defaults(run="search")

    of_compare = commands.add_parser("compare", parents=[model], help="score a pair of photos")
    of_compare.add_argument("a", metavar="QUERY")
    of_compare.add_argument("b", metavar="CANDIDATE")
    of_compare.add_argument(
        "--picture", type=Path, metavar="FILE", help="PNG of the matcher's attention, and of patches that match"
    )
    of_compare.set_defaults(run="compare")
    return parser


def _setting(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def _number(text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text} is no whole number from 0")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
