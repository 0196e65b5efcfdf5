"""A user's function in a real run: a mistake costs its own samples; if nothing is answered at all, the run stops."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration import tiny_task
from tests.stored_rollouts import stored_groups

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

PREFERENCE = """
from pathlib import Path

def longer(prompt, first, second, answer):
    if prompt in Path("outage").read_text().splitlines():
        raise OSError("no licence server")
    return 0.5 + (len(first) - len(second)) / 20
"""


def test_a_reward_that_misbehaves(tmp_path: Path) -> None:
    task = tiny_task.make_task(tmp_path / "task")
    (tmp_path / "my_reward.py").write_text(REWARD)
    changes = {
        "reward.kind": "function",
        "reward.function": "my_reward:score",
        "reward.timeout_s": 0.5,
        "reward.default": -0.25,
        "reward.max_failed_share": 1.0,
        "train.iterations": 1,
    }
    done = tiny_task.run(tiny_task.overrides(task, tmp_path / "run", **changes), ranks=2, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    responses = [(group["prompt"], r) for group in stored_groups(tmp_path / "run", 0) for r in group["responses"]]
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


def test_a_preference_that_answers_nothing(tmp_path: Path) -> None:
    """The run stops before it learns from ties; continued, it is the run that had no outage."""
    task = tiny_task.make_task(tmp_path / "task")
    (tmp_path / "my_preference.py").write_text(PREFERENCE)
    (tmp_path / "outage").write_text("")
    changes = {
        "objective": "sppo_win_rate",
        "reward.kind": "pairwise_function",
        "reward.function": "my_preference:longer",
        "data.eval_path": "null",
    }
    expected, run = tmp_path / "expected", tmp_path / "run"
    done = tiny_task.run(tiny_task.overrides(task, expected, **changes), ranks=2, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]

    (tmp_path / "outage").write_text("\n".join(group["prompt"] for group in stored_groups(expected, 1)))
    stopped = tiny_task.run(tiny_task.overrides(task, run, **changes), ranks=2, cwd=tmp_path)
    assert stopped.returncode == 1
    assert "answered none of the questions of iteration 1" in stopped.stderr
    assert "no licence server" in stopped.stderr and "checkpoint.load=latest" in stopped.stderr
    assert "Traceback" not in stopped.stderr.partition("training stopped")[0]
    assert {line["iteration"] for line in tiny_task.steps(run)} == {0}

    (tmp_path / "outage").write_text("")
    changes["checkpoint.load"] = "latest"
    done = tiny_task.run(tiny_task.overrides(task, run, **changes), ranks=2, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    ignored = ("pairwise_function_seconds",)
    lines, wanted = (
        [{key: value for key, value in line.items() if key not in ignored} for line in tiny_task.steps(folder)]
        for folder in (run, expected)
    )
    assert lines == wanted and len(wanted) == 9
