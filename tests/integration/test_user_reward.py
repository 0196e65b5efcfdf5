"""A user's reward function in a real run: one that raises, hangs or dies costs its own samples and never the run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.integration import tiny_task

REWARD = """
import os

def score(prompt, response, answer):
    kind = len(response) % 4
    if kind == 1:
        raise ValueError("no odd lengths")
    if kind == 2 and prompt.startswith("1"):
        while True:
            pass
    if kind == 3:
        os._exit(7)
    return len(response) / 10, response == answer
"""


def test_a_reward_that_misbehaves(tmp_path: Path) -> None:
    task = tiny_task.make_task(tmp_path / "task")
    (tmp_path / "my_reward.py").write_text(REWARD)
    changes = {
        "reward.kind": "function",
        "reward.function": "my_reward:score",
        "reward.timeout_s": 0.5,
        "reward.default": -0.25,
        "train.iterations": 1,
    }
    done = tiny_task.run(tiny_task.overrides(task, tmp_path / "run", **changes), ranks=2, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    lines = (tmp_path / "run" / "rollouts" / "iteration_000000.jsonl").read_text().splitlines()
    responses = [(json.loads(line)["prompt"], r) for line in lines for r in json.loads(line)["responses"]]
    failed = 0
    for prompt, response in responses:
        kind = len(response["text"]) % 4
        if kind in (1, 3) or (kind == 2 and prompt.startswith("1")):
            assert response["reward"] == -0.25 and response["error"]
            failed += 1
        else:
            assert response["reward"] == pytest.approx(len(response["text"]) / 10)
            assert response.get("error") is None
    assert 0 < failed < len(responses)
    assert {line["reward_errors"] for line in tiny_task.steps(tmp_path / "run")} == {float(failed)}
    assert "failed on" in done.stderr and "default" in done.stderr
