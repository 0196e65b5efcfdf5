"""An error of one rank: its own traceback says where, and the rank that waited for it names it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from tests.forked import processes

ROOT = Path(__file__).parents[3]
RANK = """
import torch.distributed as dist
from sppo_megatron.policy.initialize import joined_job
from sppo_megatron.cluster.failure_report import failures_reported
with joined_job(1), failures_reported():
    if dist.get_rank() == 1:
        raise KeyError("out of luck")
    dist.barrier()
"""


def test_an_error_is_named_by_those_who_waited():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [
        processes.start(
            [sys.executable, "-c", RANK], env=environment | {"RANK": rank}, stderr=subprocess.PIPE, text=True
        )
        for rank in "01"
    ]
    try:
        waited, failed = (rank.communicate(timeout=120)[1] for rank in ranks)
    finally:
        for rank in ranks:
            rank.kill()
    host = socket.gethostname()
    assert f"LostRankError: rank 0 on {host}: rank 1 on {host} failed: KeyError: 'out of luck'" in waited
    assert f"KeyError: 'out of luck'\nrank 1 on {host}" in failed.replace("[rank1]: ", "")
