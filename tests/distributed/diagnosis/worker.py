"""Examines the same ranks in several conditions.

    torchrun --nproc-per-node 3 worker.py results.json FOLDER

results.json: {condition: findings}. FOLDER holds the metadata of another Triton, for the last rank alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch.distributed as dist

from sppo_doctor.connectivity import join_job, new_control_group
from sppo_doctor.ranks import examine_ranks, judge_ranks
from tests.distributed.diagnosis.faulty_group import new_faulty_group

TIMEOUT = 120.0
SLOWED = 1
# Stopped 20 times as long as running, or longer; ends with the process that it slows.
PULSES = """
import os, signal, sys, time
try:
    while True:
        os.kill(int(sys.argv[1]), signal.SIGSTOP)
        time.sleep(0.3)
        os.kill(int(sys.argv[1]), signal.SIGCONT)
        time.sleep(0.01)
except ProcessLookupError:
    pass
"""


@contextmanager
def slowed() -> Iterator[None]:
    if dist.get_rank() != SLOWED:
        yield
        return
    helper = subprocess.Popen([sys.executable, "-c", PULSES, str(os.getpid())])
    time.sleep(0.5)
    try:
        yield
    finally:
        helper.kill()
        helper.wait()


def main() -> None:
    results, folder = Path(sys.argv[1]), sys.argv[2]
    group, device = join_job(TIMEOUT)
    control = new_control_group(TIMEOUT)

    def findings(tested: dist.ProcessGroup) -> list[dict]:
        reports = examine_ranks(tested, control, device, TIMEOUT)
        json.dumps([report.as_json() for report in reports])
        return [asdict(finding) for finding in judge_ranks(reports)]

    found = {"healthy": findings(group), "wrong values": findings(new_faulty_group())}
    with slowed():
        found["slow"] = findings(group)
    if dist.get_rank() == dist.get_world_size() - 1:
        sys.path.insert(0, folder)
    found["other versions"] = findings(group)
    if dist.get_rank() == 0:
        results.write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
