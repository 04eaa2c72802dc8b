"""A page of search results. It has no script, and its policy forbids scripts and loading."""

import html
from collections.abc import Sequence
from pathlib import Path

from rrt.index import Result
from sop.images.photo import jpeg, naming, thumbnail
from utils.errors import InputError
from utils.io.disk import stamp
from utils.text import csp_source, printable

SIDE, QUALITY = 200, 75  # pixels of a photo's longer side, and its JPEG's quality
STYLE = """body { font: 15px sans-serif; margin: 2em; color-scheme: light dark }
section { display: flex; flex-wrap: wrap; gap: 1em; margin-bottom: 3em }
figure { margin: 0; width: 200px; overflow-wrap: anywhere }
figure.query { outline: 3px double; outline-offset: 4px }"""
POLICY = f"default-src 'none'; img-src data:; style-src {csp_source(STYLE)}"


def page(queries: Sequence[Path], results: Sequence[Sequence[Result]]) -> str:
    """The page, in ASCII."""
    sections = "\n".join(
        f"<section>{_figure(_image(query), query, 'query', 'query')}{''.join(_figures(of_query))}</section>"
        for query, of_query in zip(queries, results, strict=True)
    )
    text = (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><title>Photos found</title>'
        f"<style>{STYLE}</style></head><body><h1>Photos found</h1>\n{sections}\n</body></html>\n"
    )
    return text.encode("ascii", "xmlcharrefreplace").decode()


def _figures(results: Sequence[Result]) -> list[str]:
    return [
        _figure(_image(Path(result.photo), result), result.photo, f"{rank}. {scores_text(result)}", "result")
        for rank, result in enumerate(results, start=1)
    ]


def scores_text(result: Result) -> str:
    """The scores of a result."""
    if result.score is None:
        return f"cosine {result.cosine:.3f}, not reranked"
    parts = [] if result.probability is None else [f"same product: {result.probability:.2f}"]
    if result.logit is not None:
        parts.append(f"logit {result.logit:.3f}")
    return f"score {result.score:.3f} ({', '.join([*parts, f'cosine {result.cosine:.3f}'])})"


def _figure(content: str, path: Path | str, text: str, kind: str) -> str:
    caption = f"{html.escape(text)}<br>{html.escape(printable(path))}"
    return f'<figure class="{kind}">{content}<figcaption>{caption}</figcaption></figure>'


def _image(path: Path, result: Result | None = None) -> str:
    """A photo, upright, or the reason why it cannot be shown.

    The photo of a result must be the file that was embedded: an index made by others could name any file.
    """
    try:
        if result is not None:
            with naming(path, "it is still in the index; `index --sync` removes it"):
                if stamp(path) != result.stamp:
                    raise InputError(f"photo {path} has changed since it was indexed: index it again")
        return f'<img alt="" src="data:image/jpeg;base64,{jpeg(thumbnail(path, SIDE, upright=True), QUALITY)}">'
    except InputError as error:
        return f"<p>{html.escape(printable(error))}</p>"
