"""The reference page of all keys, from their declarations.

`python -m sppo_megatron.config.reference docs/configuration.md` writes it; without a path it is printed.
"""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import fields
from functools import cache
from itertools import groupby
from pathlib import Path

from sppo_megatron.config.keys import MISSING, Key, described, written
from sppo_megatron.config.schema import Config, all_keys

_HEAD = """# Configuration

Every key, as `python -m sppo_megatron.train key=value` takes it. Written from `sppo_megatron/config/` by
`python -m sppo_megatron.config.reference docs/configuration.md`.

If a run continues with another value of a key, what happens is in the last column:

- *free*: the new value holds at once. It changes no number, or it is meant to be changed on the way.
- *next iteration*: an iteration that was begun is finished as it was begun; the new value holds from the next one.
- *fixed*: what was trained so far depends on it, so it can't change within a run.

Text is taken as it stands (`output_dir=run/lr=1e-6`); `null` is no value, and `${...}` an interpolation of OmegaConf's.
"""
_TABLE = """| key | value | default | meaning | on a change |
|---|---|---|---|---|
"""


def main(arguments: Sequence[str]) -> int:
    return write_page(render(), arguments)


def write_page(page: str, arguments: Sequence[str]) -> int:
    """Writes it to the path that a command was given, or prints it; returns the exit code."""
    if arguments:
        Path(arguments[0]).write_text(page, encoding="utf-8")
    else:
        print(page, end="")
    return 0


def render() -> str:
    """The page in Markdown."""
    return _HEAD + "".join(_section(group, list(keys)) for group, keys in groupby(_sorted(), _group_of))


def _sorted() -> Iterator[Key]:
    """In order of declaration, with a group's own keys before those of the groups in it, and those of no group last."""
    tops = [field.name for field in fields(Config)]
    order = list(dict.fromkeys(_group_of(key) for key in all_keys().values()))

    def place(key: Key) -> tuple[int, int, int]:
        group = _group_of(key)
        return tops.index(key.name.split(".")[0]), group.count("."), order.index(group)

    yield from sorted(all_keys().values(), key=place)


def _section(group: str, keys: list[Key]) -> str:
    about = "" if keys[0].group is Config else f"\n{_joined(inspect.getdoc(keys[0].group) or '')}\n"
    return f"\n## {group or 'The run'}\n{about}\n{_TABLE}" + "".join(map(_row, keys))


def _row(key: Key) -> str:
    default = "must be given" if key.default == MISSING else f"`{written(key.default)}`"
    cells = (f"`{key.name}`", described(key.hint), default, meaning(key), key.resume.value)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def meaning(key: Key) -> str:
    """The string below the key's declaration."""
    return _meanings(key.group)[key.name.rpartition(".")[2]]


@cache
def _meanings(group: type) -> dict[str, str]:
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(group))).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for field, below in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
            found[field.target.id] = _joined(ast.literal_eval(below.value))
    return found


def _joined(text: str) -> str:
    return " ".join(text.split())


def _group_of(key: Key) -> str:
    return key.name.rpartition(".")[0]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
