"""A page of search results. It has no script, and its policy forbids scripts and loading."""

import html
from collections.abc import Sequence
from pathlib import Path

from rrt.index import Result
from sop.images.photo import jpeg, naming, thumbnail
from utils.errors import InputError
from utils.io.disk import stamp
from utils.text import csp_source, printable

SIDE, QUALITY = 240, 75  # pixels of a photo's longer side, and its JPEG's quality
STYLE = """:root { color-scheme: light dark }
body { max-width: 75rem; margin: 0 auto; padding: 1rem; font: 15px/1.4 system-ui, sans-serif }
h2, figcaption { overflow-wrap: anywhere; unicode-bidi: isolate }
section { display: grid; grid-template-columns: minmax(0, 13rem) minmax(0, 1fr); gap: 0 1.5rem; margin-bottom: 3rem }
h2 { grid-column: 1 / -1; font-size: 1.15rem }
ol { display: grid; grid-template-columns: repeat(auto-fill, minmax(10rem, 1fr)); gap: 1rem; margin: 0; padding: 0 }
li { list-style: none }
figure { margin: 0 }
img, figure > p { width: 100%; aspect-ratio: 1; object-fit: contain; box-sizing: border-box; border-radius: 6px }
img, figure > p { display: block; margin: 0 0 .3rem; background: #8882; overflow: auto }
.query img { outline: 3px double; outline-offset: 2px }
small { display: block; opacity: .75 }
figcaption span { font-size: .85em }
@media (max-width: 40rem) {
  section { grid-template-columns: minmax(0, 1fr) }
  .query { width: calc(50% - .5rem); margin-bottom: 1.5rem }
}"""
POLICY = f"default-src 'none'; img-src data:; style-src {csp_source(STYLE)}"


def page(queries: Sequence[Path], results: Sequence[Sequence[Result]], ranking: str) -> str:
    """The page, in ASCII; `ranking` says what photos are ranked by. Photos link to their files."""
    sections = "\n".join(_section(*pair) for pair in zip(queries, results, strict=True))
    text = (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><title>Photos found</title>'
        f"<style>{STYLE}</style></head><body><h1>Photos found</h1>\n"
        f"<p>{_escaped(ranking[0].upper() + ranking[1:])}.</p>\n{sections}\n</body></html>\n"
    )
    return text.encode("ascii", "xmlcharrefreplace").decode()


def _section(query: Path, results: Sequence[Result]) -> str:
    items = "".join(f"<li>{_found(rank, result)}</li>" for rank, result in enumerate(results, start=1))
    figure = f'<figure class="query">{_image(query, "query")}<figcaption>query</figcaption></figure>'
    return f"<section><h2>Query {_name(query)}</h2>{figure}<ol>{items}</ol></section>"


def _found(rank: int, result: Result) -> str:
    photo, before = Path(result.photo), result.rank_by_cosine
    was = "" if before == rank else f" was {ordinal(before)} by cosine"
    caption = f"<b>{rank}.</b>{was}<br>{_name(photo)}<small>{scores_text(result)}</small>"
    return f"<figure>{_image(photo, f'rank {rank}', result)}<figcaption>{caption}</figcaption></figure>"


def ordinal(number: int) -> str:
    """1st, 2nd, 3rd, 4th, 11th, 21st."""
    ending = "th" if number // 10 % 10 == 1 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def scores_text(result: Result) -> str:
    """The scores of a result."""
    if result.score is None:
        return f"cosine {result.cosine:.3f}, not reranked"
    parts = [] if result.probability is None else [f"same product: {result.probability:.2f}"]
    if result.logit is not None:
        parts.append(f"logit {result.logit:.3f}")
    return f"score {result.score:.3f} ({', '.join([*parts, f'cosine {result.cosine:.3f}'])})"


def _escaped(text: object) -> str:
    return html.escape(printable(text))


def _name(path: Path) -> str:
    """A file's name, with its path on hover."""
    return f'<span title="{_escaped(path)}">{_escaped(path.name)}</span>'


def _image(path: Path, kind: str, result: Result | None = None) -> str:
    """A photo, upright, with a link to its file, or the reason why it cannot be shown.

    The photo of a result must be the file that was embedded: an index made by others could name any file.
    """
    try:
        if result is not None:
            with naming(path, "it is still in the index; `index --sync` removes it"):
                if stamp(path) != result.stamp:
                    raise InputError(f"photo {path} has changed since it was indexed: index it again")
        content = jpeg(thumbnail(path, SIDE, upright=True), QUALITY)
    except InputError as error:
        return f"<p>{_escaped(error)}</p>"
    image = f'<img alt="{kind}: {_escaped(path.name)}" src="data:image/jpeg;base64,{content}">'
    return f'<a href="{path.absolute().as_uri()}">{image}</a>'
