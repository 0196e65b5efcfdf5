"""`sppo COMMAND ...`: finds the sub-command among the entry points of the group `sppo.commands` and runs it.

Under torchrun: `torchrun ... -m sppo_megatron.cli.main COMMAND ...`.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from sppo_megatron.cluster.exit_codes import EXIT_CONFIG_ERROR

GROUP = "sppo.commands"


def commands() -> dict[str, EntryPoint]:
    """The installed sub-commands by name, also those of tools and of other packages."""
    return {entry.name: entry for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one sub-command with the arguments that follow its name; returns its exit code, 2 for an unknown name."""
    name, *rest = [*(sys.argv[1:] if arguments is None else arguments)] or ["--help"]
    known = commands()
    if name in ("-h", "--help"):
        width = max(map(len, known), default=0)
        lines = [f"  {entry.name:{width}}  {describe(entry)}" for entry in known.values()]
        print("usage: sppo COMMAND ...", "", *lines, "", "`sppo COMMAND --help` describes one.", sep="\n")
        return 0
    if name not in known:
        print(f"sppo: {name!r} is not a command: choose one of {', '.join(known)}", file=sys.stderr)
        return EXIT_CONFIG_ERROR
    return known[name].load()(rest)


def describe(entry: EntryPoint) -> str:
    """The first line of its module's docstring, without `sppo NAME:`. The module is read, not imported."""
    spec = importlib.util.find_spec(entry.module)
    assert spec is not None and spec.origin is not None, f"{entry.value} is not installed"
    text = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0].removeprefix(f"sppo {entry.name}: ")


if __name__ == "__main__":
    sys.exit(main())
