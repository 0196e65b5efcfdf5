"""URLs of servers, as the configuration names them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from urllib.parse import urlsplit


def url_problems(urls: Sequence[str], group: str) -> Iterator[str]:
    """What is wrong with the value of `group`.urls. An API may lie at a path of its server, and end with its version.

    URLs are written down, in config.yaml and in messages, so none may hold a password or a key: that one isn't shown.
    """
    if any(_holds_secret(url) for url in urls):
        yield f"{group}.urls holds a password or a key, and URLs are written down: use {group}.api_key_env"
        return
    for url in urls:
        if not re.fullmatch(r"https?://[^/?#\s]+(/[^?#\s]*)?", url):
            yield f"{group}.urls holds {url!r}: each is http://host:port or https://host/path"
    if len({re.sub(r"(/v1)?/*$", "", url) for url in urls}) < len(urls):
        yield f"{group}.urls names a server twice"


def _holds_secret(url: str) -> bool:
    parts = urlsplit(url)
    return "@" in parts.netloc or bool(parts.query)
