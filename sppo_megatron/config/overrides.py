"""Command-line overrides before Hydra reads them: unknown keys are named, and text is taken as it stands.

Hydra's grammar gives `=`, blanks, commas, brackets and a leading `~` a meaning of its own, and reads `1e5` as a number.
A key whose values are text has no use for that.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from functools import cache
from typing import get_args, get_origin

from sppo_megatron.config.keys import Key, alternatives
from sppo_megatron.config.schema import all_keys

_OVERRIDE = re.compile(r"(?P<sign>\+{0,2}|~)(?P<key>[\w.]+)(?P<rest>=.*)?", re.DOTALL)
_QUOTED = re.compile(r"""\s*('(\\.|[^'\\])*'|"(\\.|[^"\\])*")\s*""", re.DOTALL)


def find_unknown(overrides: Iterable[str], groups: set[str]) -> Iterator[str]:
    """One message for each override whose key is neither a key nor one of these config groups."""
    for override in overrides:
        if override.lstrip("+~").startswith("="):
            yield f"{override} names no key: write key=value, or group=option"
            continue
        match = _OVERRIDE.fullmatch(override)
        if match is None or match["key"].startswith("hydra"):
            continue
        key = match["key"]
        if key not in groups and key not in known_names() and not any(is_free(name) for name in _parents(key)):
            yield f"{key} is not a known key{suggestion(key, groups)}"


def suggestion(key: str, groups: Iterable[str] = ()) -> str:
    """The known keys nearest to one that isn't known, by their last names if it has no group."""
    names = {name: [name] for name in [*known_names(), *groups]}
    if "." not in key:
        for name in all_keys():
            names.setdefault(name.rpartition(".")[2], []).append(name)
    near = [name for match in difflib.get_close_matches(key, names, n=3, cutoff=0.6) for name in names[match]]
    if near:
        return f"; did you mean {', '.join(dict.fromkeys(near))}?"
    group = key.rpartition(".")[0]
    inside = [name.removeprefix(f"{group}.") for name in all_keys() if group and name.startswith(f"{group}.")]
    return f"; {group} has {', '.join(inside)}" if inside else ""


def quote_text(override: str) -> str:
    """The override with its value in Hydra's quotes if its key is one of text or of a list of texts.

    `null`, and what is in quotes already, stays as it is; so do interpolations, which Hydra reads in quotes, too.
    """
    match = _OVERRIDE.fullmatch(override)
    key = all_keys().get(match["key"]) if match and match["rest"] else None
    if match is None or key is None:
        return override
    value = match["rest"][1:]
    if key.is_text and value not in ("null", "???"):
        value = _quoted(value)
    elif _is_texts(key) and value.startswith("[") and value.endswith("]") and not set(value) & {"'", '"'}:
        value = f"[{','.join(_quoted(item.strip()) for item in value[1:-1].split(',') if item.strip())}]"
    return f"{match['sign']}{key.name}={value}"


def is_free(name: str) -> bool:
    """Whether a key is a mapping, in which any name is right."""
    key = all_keys().get(name)
    return key is not None and any(get_origin(kind) is dict for kind, _ in alternatives(key.hint))


def _quoted(text: str) -> str:
    r"""Hydra drops one backslash of each pair in front of a quote, and keeps all others."""
    if _QUOTED.fullmatch(text):
        return text
    return "'" + re.sub(r"(\\*)('|\Z)", lambda found: found[1] * 2 + found[2].replace("'", "\\'"), text) + "'"


def _is_texts(key: Key) -> bool:
    return any(get_origin(kind) is list and get_args(kind) == (str,) for kind, _ in alternatives(key.hint))


@cache
def known_names() -> dict[str, Key | None]:
    """Every key by its dotted name, and every group of keys, as None."""
    return {name: all_keys().get(name) for key in all_keys() for name in [*reversed(_parents(key)), key]}


def _parents(key: str) -> list[str]:
    parts = key.split(".")
    return [".".join(parts[:end]) for end in range(len(parts) - 1, 0, -1)]
