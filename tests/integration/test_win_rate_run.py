"""Win rates end to end: the real command with a pairwise judge over HTTP, in the regression and the pairwise family."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest

from tests.integration import tiny_task
from tests.stored_rollouts import read_records
from tests.unit.rewards.endpoint import Endpoint, completion

PLACE = 1.5  # what standing first is worth to this judge, in its logit


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_task.make_task(tmp_path_factory.mktemp("task"))


def digits(text: str) -> int:
    return sum(character.isdigit() for character in text)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def judge(endpoint: Endpoint, message: str) -> dict:
    """Likes digits, and whoever stands first."""
    first, second = re.search(r"\[Response A\]\n(.*)\n\n\[Response B\]\n(.*)\n\nAnswer", message, re.DOTALL).groups()
    win = sigmoid(digits(first) - digits(second) + PLACE)
    return completion("A", {"A": math.log(win), "B": math.log(1 - win)})


def preferred(a: str, b: str) -> float:
    """P(a beats b) over both orders."""
    gap = digits(a) - digits(b)
    return (sigmoid(gap + PLACE) + sigmoid(gap - PLACE)) / 2


@pytest.mark.parametrize(
    "objective",
    [
        {"objective": "sppo_win_rate"},
        {"objective": "sppo_win_rate", "objective.pairwise": "sppo"},
        {"objective": "sppo_win_rate", "objective.pairwise": "dpo", "objective.beta": 0.1},
    ],
    ids=["regression", "pairs", "dpo"],
)
def test_from_the_judge_to_the_loss(task: Path, tmp_path: Path, objective: dict) -> None:
    endpoint = Endpoint(judge)
    changes = {"reward": "judge", "reward.kind": "judge", "reward.judge.urls": f"[{endpoint.url}]", **objective}
    done = tiny_task.run(tiny_task.overrides(task, tmp_path / "run", **changes, **{"data.eval_path": "null"}), ranks=2)
    endpoint.close()
    assert done.returncode == 0, done.stderr[-4000:]
    lines = tiny_task.steps(tmp_path / "run")
    assert len(lines) >= 3
    for line in lines:
        assert math.isfinite(line["loss"]) and line["judge_questions"] > 0 and line["judge_failed"] == 0
    for file in sorted((tmp_path / "run" / "rollouts").glob("iteration_*.parquet")):
        for group in read_records(file):
            texts = [response["text"] for response in group["responses"]]
            expected = np.array([[preferred(a, b) for b in texts] for a in texts])
            np.testing.assert_allclose(np.array(group["preference"]), expected, atol=1e-6)
            rewards = [response["reward"] for response in group["responses"]]
            np.testing.assert_allclose(rewards, expected.mean(axis=1), atol=1e-6)
