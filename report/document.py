"""One self-contained HTML file: template, style, scripts and data, with a policy that lets nothing else run or load."""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

PARTS = Path(__file__).parent / "page"
SCRIPTS = ("elements.js", "tables.js", "pair.js", "gallery.js", "page.js")
ESCAPED = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}  # nothing in the data ends its element; ASCII else


def document(data: dict[str, Any]) -> str:
    """The page that shows `data`: plain values of JSON, finite numbers."""
    style = _part("page.css")
    script = '"use strict";\n' + "\n".join(_part(name) for name in SCRIPTS)
    policy = f"default-src 'none'; img-src data:; style-src {_source(style)}; script-src {_source(script)}"
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


def _source(content: str) -> str:
    """The policy's name for an element of this content."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
