"""The reference page of all commands, from what each says for `--help`.

`python -m sppo_megatron.cli.reference docs/commands.md` writes it; without a path it is printed.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Sequence

from sppo_megatron.cli.main import commands
from sppo_megatron.cli.main import main as sppo
from sppo_megatron.config.reference import write_page

_HEAD = """# Commands

What `sppo COMMAND --help` says, written by `python -m sppo_megatron.cli.reference docs/commands.md`. Exit codes: 0 all
is well, 1 an error, 2 something that you gave is wrong, 75 ended by a signal after saving: run the same command again.
"""


def main(arguments: Sequence[str]) -> int:
    return write_page(render(), arguments)


def render() -> str:
    """The page in Markdown."""
    return _HEAD + "".join(f"\n## sppo {name}\n\n```text\n{help_of(name)}\n```\n" for name in commands())


def help_of(name: str) -> str:
    """What the command prints for --help, 100 columns wide."""
    printed, columns = io.StringIO(), os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "100"
    try:
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            sppo([name, "--help"])
    finally:
        os.environ.pop("COLUMNS") if columns is None else os.environ.update(COLUMNS=columns)
    return "\n".join(line.rstrip() for line in printed.getvalue().strip().splitlines())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
