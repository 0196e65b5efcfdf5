"""examples/offline_paper as a user runs it: a real vLLM server judges, each iteration starts from the one before."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.installed import needs_vllm
from tests.integration import tiny_task
from tests.integration.offline_commands import check_log_probs, groups_of

pytestmark = needs_vllm

SCRIPT = tiny_task.ROOT / "examples" / "offline_paper" / "run.sh"


def run(output: Path, **environment: str) -> str:
    done = subprocess.run(
        [SCRIPT, output],
        env=os.environ | {"PYTHON": sys.executable, "ITERATIONS": "2", **environment},
        capture_output=True,
        text=True,
        timeout=840,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def sevens(printed: str) -> list[float]:
    return [float(number) for number in re.findall(r"rollouts.jsonl: (\S+) sevens a response", printed)]


@pytest.mark.timeout(900)
def test_two_iterations(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    printed = run(tmp_path, JUDGE_PORT=str(port))
    first, second = sevens(printed)
    assert second > 1.2 * first, "the policy did not learn what the judge likes"
    servers = [process for process in psutil.process_iter(["cmdline"]) if str(port) in (process.info["cmdline"] or [])]
    assert not servers, "the judge's server outlived the script"

    for group in groups_of(tmp_path / "iteration_0" / "scored.jsonl"):
        preference = np.array(group["preference"])
        assert preference.shape == (5, 5) and np.array_equal(preference + preference.T, np.ones((5, 5)))
        gap = np.array([response["text"].count("7") for response in group["responses"]])
        expected = 1 / (1 + np.exp(gap[None, :] - gap[:, None]))
        assert np.abs(preference - expected).mean() < 0.1, "the judge does not say what it was trained to"

    # the second iteration samples from what the first one trained
    check_log_probs(tmp_path / "iteration_0" / "train" / "hf", tmp_path / "iteration_1" / "rollouts.jsonl")

    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert sevens(run(tmp_path, JUDGE_URL="http://127.0.0.1:9")) == [first, second]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == files
