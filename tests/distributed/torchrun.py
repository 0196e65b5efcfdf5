"""One torchrun for many cases: what starting processes costs is paid once, and a failure is not launched again."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

from tests.forked import processes

ROOT = Path(__file__).parents[2]


def run_once(worker: Path, argument: Path, ranks: int, *python_path: Path, vllm: bool = False) -> None:
    """Runs `worker argument` on `ranks` processes at the first call; fails at every call if that run has failed.

    python_path: folders that modules are looked for in first. vllm: the ranks import it.
    """
    failure = _launch(worker, argument, ranks, python_path, vllm)
    assert failure is None, failure


@cache
def _launch(worker: Path, argument: Path, ranks: int, python_path: tuple[Path, ...], vllm: bool) -> str | None:
    """What the run said if it failed: a cached function forgets exceptions."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    try:
        done = processes.run(
            [*command, str(worker), str(argument)],
            600,
            vllm=vllm,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, (*python_path, ROOT)))},
        )
    except subprocess.TimeoutExpired as error:
        return str(error)
    return None if done.returncode == 0 else done.stdout[-2000:] + done.stderr[-6000:]
