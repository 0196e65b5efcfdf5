"""examples/judge as a user runs it, shorter: a real vLLM server judges an online run and its evaluations."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.installed import needs_vllm
from tests.integration import tiny_task

pytestmark = needs_vllm

SCRIPT = tiny_task.ROOT / "examples" / "judge" / "run.sh"


@pytest.mark.timeout(900)
def test_the_policy_learns_what_the_judge_likes(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    done = subprocess.run(
        [SCRIPT, tmp_path, "train.iterations=6", "eval.interval=3"],
        env=os.environ | {"PYTHON": sys.executable, "JUDGE_PORT": port},
        capture_output=True,
        text=True,
        timeout=840,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert not [p for p in psutil.process_iter(["cmdline"]) if port in (p.info["cmdline"] or [])]

    sevens = [float(number) for number in re.findall(r"(\S+) sevens a response", done.stdout)]
    assert len(sevens) == 3 and sevens[2] > 2 * sevens[0]
    run = tmp_path / "run"
    assert all(line["judge_failed"] == 0 for line in tiny_task.steps(run))
    before, _, after = tiny_task.evaluations(run)
    assert before["eval_win_rate_initial"] == 0.5
    assert after["eval_win_rate_initial_low"] > 0.5, "better than the start beyond chance"

    # the judge was trained to P(A wins) = σ(sevens in A − sevens in B): what it said must be near that
    answers = [
        [json.loads(line)["responses"][0] for line in (run / "evaluations" / f"{name}.jsonl").read_text().splitlines()]
        for name in ("iteration_000000", "iteration_000006")
    ]
    gaps = [mine["text"].count("7") - start["text"].count("7") for start, mine in zip(*answers, strict=True)]
    wins = [1 / (1 + 2.718281828**-gap) for gap in gaps]
    assert after["eval_win_rate_initial"] == pytest.approx(sum(wins) / len(wins), abs=0.1)
