"""Many command lines in one process, started once."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.distributed.torchrun import ROOT
from tests.forked import processes


def run_command_lines(folder: Path, command_lines: Mapping[str, Sequence[object]], *python_path: Path) -> dict:
    """{name: [exit code, standard output, standard error]}. python_path: folders to look for modules in first."""
    todo = folder / "commands.json"
    todo.write_text(json.dumps({name: [str(part) for part in line] for name, line in command_lines.items()}))
    done = processes.run(
        [sys.executable, str(Path(__file__).with_name("commands.py")), str(todo)],
        600,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, (*python_path, ROOT)))},
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return json.loads(done.stdout.splitlines()[-1])
