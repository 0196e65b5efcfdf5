"""`sppo COMMAND ...`: finds the sub-command among the entry points of the group `sppo.commands` and runs it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points

GROUP = "sppo.commands"


def commands() -> dict[str, EntryPoint]:
    """The installed sub-commands by name, those of tools and of other packages too."""
    return {entry.name: entry for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one sub-command with the arguments behind its name; returns its exit code, 2 for an unknown name."""
    name, *rest = [*(sys.argv[1:] if arguments is None else arguments)] or ["--help"]
    known = commands()
    if name in ("-h", "--help"):
        print(f"usage: sppo COMMAND ...\n\ncommands: {', '.join(known)}\n\n`sppo COMMAND --help` describes one.")
        return 0
    if name not in known:
        print(f"sppo: {name!r} is no command: choose one of {', '.join(known)}", file=sys.stderr)
        return 2
    return known[name].load()(rest)


if __name__ == "__main__":
    sys.exit(main())
