"""Ranks started without torchrun, by examples/slurm/rank.sh as srun does: SIGUSR1 at one, and all save and leave."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

from sppo_megatron.train.command import EXIT_PREEMPTED
from tests.integration import tiny_task

RANK = tiny_task.ROOT / "examples" / "slurm" / "rank.sh"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_sigusr1_ahead_of_the_time_limit(tmp_path: Path) -> None:
    task, output = tiny_task.make_task(tmp_path / "task"), tmp_path / "run"
    overrides = tiny_task.overrides(task, output, **{"train.iterations": 500, "checkpoint.load": "latest"})
    environment = tiny_task.environment()
    environment |= {"PATH": f"{Path(sys.executable).parent}:{environment['PATH']}", "SLURM_NNODES": "1"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "SLURM_NTASKS": "2"}
    ranks = []
    try:
        for number in ("0", "1"):
            of_rank = {"SLURM_PROCID": number, "SLURM_LOCALID": number}
            ranks.append(subprocess.Popen([RANK, *overrides], env=environment | of_rank, stdout=subprocess.DEVNULL))
        tiny_task.wait_for_step(output, 2, ranks[0])
        ranks[1].send_signal(signal.SIGUSR1)
        assert [rank.wait(timeout=120) for rank in ranks] == [EXIT_PREEMPTED] * 2
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    (checkpoint,) = (output / "checkpoints").iterdir()
    assert checkpoint.name == f"step_{tiny_task.steps(output)[-1]['step']:08d}"
