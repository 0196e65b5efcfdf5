"""Runs command lines of the checkpoint commands in one process, since each would spend seconds on imports.

    commands.py todo.json

todo.json: {name: [command, argument, ...]}. Prints {name: [exit code, standard output, standard error]}.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import sys
from pathlib import Path


def main() -> None:
    results = {}
    for name, (command, *arguments) in json.loads(Path(sys.argv[1]).read_text()).items():
        module = importlib.import_module(f"sppo_megatron.cli.{command}")
        output, errors = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            code = module.main(arguments)
        results[name] = [code, output.getvalue(), errors.getvalue()]
    print(json.dumps(results))


if __name__ == "__main__":
    main()
