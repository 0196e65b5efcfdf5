"""One HTML file that holds everything: markup, style, script and data. It asks nothing of the network."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from importlib import resources
from typing import Any

_FILES = resources.files("sppo_report")
_SCRIPTS = (
    "elements.js",
    "scales.js",
    "chart.js",
    "timeline.js",
    "overview.js",
    "conversation.js",
    "samples.js",
    "report.js",
)


def build_page(data: dict[str, Any]) -> bytes:
    """The page as UTF-8. The browser gets the data as JSON, writes it as text only, and runs no script but ours.

    Raises ValueError if a number in the data isn't finite.
    """
    style, script = _asset("report.css"), "\n".join(map(_asset, _SCRIPTS))
    parts = {
        "style": style,
        "script": script,
        "style_hash": _hash(style),
        "script_hash": _hash(script),
        "data": embedded_json(data),
    }
    # In one pass: a placeholder inside the data stays as it is.
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _asset("report.html"))
    # JSON may hold half of a surrogate pair, which has no UTF-8; backslashes are JSON's own notation for it.
    return page.encode("utf-8", errors="backslashreplace")


def embedded_json(data: object) -> str:
    """JSON that may stand inside a <script> element: no text in it can end the element."""
    return json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _asset(name: str) -> str:
    return (_FILES / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """What a content security policy names an inline element by."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
