"""Three ranks on gloo, one of which is wrong, slow, of other versions, or missing: the doctor names it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.forked import processes

WORKER = Path(__file__).with_name("worker.py")
ROOT = Path(__file__).parents[3]
MISSING = """
import os, sys, time
from sppo_doctor.command import main
from sppo_doctor.connectivity import join_job, new_control_group
if os.environ["RANK"] == "1":
    if sys.argv[1] == "silent":
        join_job(60.0)
        new_control_group(60.0)
    time.sleep(600)
sys.exit(main(["--distributed", "--json", "--timeout", sys.argv[2]]))
"""


def torchrun(ranks: int, *command: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    return processes.run([*launcher, *command], 300, env=environment)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict]]:
    folder = tmp_path_factory.mktemp("ranks")
    metadata = folder / "other" / "triton-3.0.0.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Metadata-Version: 2.1\nName: triton\nVersion: 3.0.0\n")
    done = torchrun(3, str(WORKER), str(folder / "results.json"), str(folder / "other"))
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((folder / "results.json").read_text())


def named(findings: list[dict], said: str) -> dict[str, str]:
    """The ranks of which this is said. Of one more may be said: on a busy machine some rank is slow, too."""
    problems = [finding for finding in findings if finding["status"] == "problem" and said in finding["text"]]
    return {finding["subject"]: finding["text"] for finding in problems}


def test_healthy(results):
    statuses = {finding["subject"]: finding["status"] for finding in results["healthy"]}
    assert {statuses[subject] for subject in ("connectivity", "versions", "collectives")} == {"ok"}
    assert "3 ranks on 1 host" in results["healthy"][0]["text"]


def test_wrong_values(results):
    wrong = named(results["wrong values"], "wrong values")
    assert set(wrong) == {"rank 1"}
    for collective in ("all_gather", "all_reduce", "broadcast", "reduce_scatter", "send and recv"):
        assert collective in wrong["rank 1"]


def test_slow(results):
    """By what it computes: three ranks on two cores delay each other's links, too."""
    slow = named(results["slow"], "slow: computes")
    assert set(slow) == {"rank 1"}
    assert "FLOP/s, the others" in slow["rank 1"]


def test_other_versions(results):
    assert named(results["other versions"], "triton 3.0.0")["rank 2"].startswith("triton 3.0.0, and ")


@pytest.mark.parametrize(
    ("behaviour", "timeout", "text"),
    [
        ("absent", "8", "rank 1 did not come within 8 s"),  # it never joins the job
        ("silent", "20", "failed to pass monitoredBarrier"),  # it joins, and then says nothing
    ],
)
def test_missing(behaviour, timeout, text, tmp_path):
    script = tmp_path / "missing.py"
    script.write_text(MISSING)
    done = torchrun(2, str(script), behaviour, timeout)
    assert done.returncode != 0
    (line,) = done.stdout.splitlines()
    (finding,) = json.loads(line)["findings"]
    assert finding["status"] == "problem"
    assert text in finding["text"] and "1" in finding["text"]
