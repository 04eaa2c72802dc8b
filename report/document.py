"""One self-contained HTML file: template, style, scripts and data. Its policy forbids all else to run or load."""

import json
from pathlib import Path
from typing import Any

from utils.text import csp_source

PARTS = Path(__file__).parent / "page"
SCRIPTS = ("elements.js", "tables.js", "pair.js", "gallery.js", "page.js")
ESCAPED = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}  # so that the data cannot end its element


def document(data: dict[str, Any]) -> str:
    """The page that shows `data`: plain values of JSON, finite numbers."""
    style = _part("page.css")
    script = '"use strict";\n' + "\n".join(_part(name) for name in SCRIPTS)
    policy = f"default-src 'none'; img-src data:; style-src {csp_source(style)}; script-src {csp_source(script)}"
    page = _part("page.html")
    for name, content in {"policy": policy, "style": style, "script": script, "data": as_json(data)}.items():
        before, after = page.split(f"{{{{{name}}}}}")
        page = before + content + after
    return page


def as_json(data: object) -> str:
    """JSON in ASCII that may stand in a `script` element."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    for character, escape in ESCAPED.items():
        text = text.replace(character, escape)
    return text


def _part(name: str) -> str:
    return (PARTS / name).read_text(encoding="utf-8")
