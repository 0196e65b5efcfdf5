"""URLs of servers, as the configuration names them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from urllib.parse import urlsplit


def url_problems(urls: Sequence[str], group: str, *, have_paths: bool) -> Iterator[str]:
    """What is wrong with the value of `group`.urls. have_paths: whether an API may lie at a path of its server.

    URLs are written down, in config.yaml and in messages, so none may hold a password or a key: that one isn't shown.
    """
    if any(_holds_secret(url) for url in urls):
        yield f"{group}.urls holds a password or a key, and URLs are written down: use {group}.api_key_env"
        return
    path, form = ("(/[^?#]*)?", "http://host:port or https://host/path") if have_paths else ("/?", "http://host:port")
    for url in urls:
        if re.search(r"\s", url) or not re.fullmatch(rf"https?://[^/?#]+{path}", url):
            yield f"{group}.urls holds {url!r}: each is {form}{'' if have_paths else ', without a path'}"
    if len(set(urls)) < len(urls):
        yield f"{group}.urls names a server twice"


def _holds_secret(url: str) -> bool:
    parts = urlsplit(url)
    return "@" in parts.netloc or bool(parts.query)
