"""A page with queries and the photos found for them: no script, and a policy that lets none run and nothing load."""

import base64
import hashlib
import html
from collections.abc import Sequence
from pathlib import Path

from rrt.index import Found
from sop.images.photo import jpeg, naming, thumbnail
from utils.errors import InputError
from utils.io.disk import stamp
from utils.text import printable

SIDE, QUALITY = 200, 75  # pixels of a photo's longer side, and its JPEG's quality
STYLE = """body { font: 15px sans-serif; margin: 2em; color-scheme: light dark }
section { display: flex; flex-wrap: wrap; gap: 1em; margin-bottom: 3em }
figure { margin: 0; width: 200px; overflow-wrap: anywhere }
figure.query { outline: 3px double; outline-offset: 4px }"""
POLICY = (
    "default-src 'none'; img-src data:; "
    f"style-src 'sha256-{base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()}'"
)


def page(queries: Sequence[Path], found: Sequence[Sequence[Found]]) -> str:
    """The page, in ASCII."""
    sections = "\n".join(
        f"<section>{_figure(_shown(query), query, 'query', 'query')}{''.join(_figures(photos))}</section>"
        for query, photos in zip(queries, found, strict=True)
    )
    text = (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><title>Photos found</title>'
        f"<style>{STYLE}</style></head><body><h1>Photos found</h1>\n{sections}\n</body></html>\n"
    )
    return text.encode("ascii", "xmlcharrefreplace").decode()


def _figures(photos: Sequence[Found]) -> list[str]:
    return [
        _figure(_found(found), found.photo, f"{rank}. {describe(found)}", "found")
        for rank, found in enumerate(photos, start=1)
    ]


def describe(found: Found) -> str:
    """The scores in words."""
    if found.score is None:
        return f"cosine {found.cosine:.3f}, not rescored"
    if found.logit is None:
        return f"cosine {found.cosine:.3f}"
    return f"score {found.score:.3f} (logit {found.logit:.3f}, cosine {found.cosine:.3f})"


def _figure(shown: str, path: Path | str, text: str, kind: str) -> str:
    caption = f"{html.escape(text)}<br>{html.escape(printable(path))}"
    return f'<figure class="{kind}">{shown}<figcaption>{caption}</figcaption></figure>'


def _found(found: Found) -> str:
    """A photo of an index, if it is still the one that was embedded: no file of an index made by others is shown."""
    path = Path(found.photo)
    try:
        with naming(path, "it is still in the index, out of which `index --sync` takes it"):
            if stamp(path) != found.stamp:
                raise InputError(f"photo {path} has changed since it was indexed: index it again")
    except InputError as error:
        return _said(error)
    return _shown(path)


def _shown(path: Path) -> str:
    """A photo, upright, or what is wrong with it."""
    try:
        small = thumbnail(path, SIDE, upright=True)
    except InputError as error:
        return _said(error)
    return f'<img alt="" src="data:image/jpeg;base64,{jpeg(small, QUALITY)}">'


def _said(error: InputError) -> str:
    return f"<p>{html.escape(printable(error))}</p>"
