"""Judges that fail, in a real run with real vLLM servers: each failure costs its pair, all of them together the run."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest

from sppo_megatron.rewards.preference import ordered_pairs
from sppo_megatron.rewards.text import JUDGE_TEMPLATE, render
from tests.forked import processes
from tests.installed import needs_vllm
from tests.integration import tiny_task
from tests.integration.faulty_proxy import FaultyProxy, fault_of
from tests.integration.tiny_judge import JudgeServer, save_judge
from tests.stored_rollouts import rollout_path, stored_groups

pytestmark = needs_vllm

TIMEOUT_S = 15.0  # much longer than an answer takes on a busy machine: only what hangs may fail by it
KILLED_AT = 100  # questions that the second server has been asked; an iteration has up to 144
JUDGE = {
    "reward": "judge",
    "reward.kind": "judge",
    "reward.judge.timeout_s": TIMEOUT_S,
    "reward.judge.retries": 1,
    "reward.judge.backoff_s": 0.1,
    "reward.judge.concurrency": 24,  # more than hang at a time
    "objective": "sppo_win_rate",
    "data.eval_path": "null",
    "train.prompts_per_iteration": 12,
    "train.minibatch_size": 16,
}


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory):
    folder = save_judge(tmp_path_factory.mktemp("judge"))
    servers = [JudgeServer(folder), JudgeServer(folder)]
    try:
        for server in servers:
            server.wait()
        yield servers
    finally:
        for server in servers:
            server.stop()


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_task.make_task(tmp_path_factory.mktemp("task"))


def questions(group: dict) -> dict[tuple[int, int], str]:
    """What the judge is asked about each ordered pair."""
    texts = [response["text"] for response in group["responses"]]
    return {(i, j): render(JUDGE_TEMPLATE, group["prompt"], texts[i], texts[j]) for i, j in ordered_pairs(texts)}


def groups_of(run: Path, iteration: int) -> list[dict]:
    return stored_groups(run, iteration)


def test_failures_are_ties_and_counted(task: Path, servers: list[JudgeServer], tmp_path: Path) -> None:
    """500s, garbage, hangs, and one server killed amid the questions: the other one answers them."""
    alive = FaultyProxy(servers[0].url, 2 * TIMEOUT_S)
    killed = FaultyProxy(servers[1].url, 2 * TIMEOUT_S, lambda count: servers[1].kill() if count == KILLED_AT else None)
    changes = JUDGE | {"reward.judge.urls": f"[{alive.url},{killed.url}]", "reward.max_failed_share": 0.9}
    done = tiny_task.run(tiny_task.overrides(task, tmp_path / "run", **changes), timeout=400)
    alive.close(), killed.close()
    assert done.returncode == 0, done.stderr[-4000:]
    assert servers[1].process.returncode == -signal.SIGKILL
    assert f"the judge server {killed.url} is taken out" in done.stderr
    lines = {line["iteration"]: line for line in tiny_task.steps(tmp_path / "run")}
    assert sorted(lines) == [0, 1, 2]
    for iteration, line in lines.items():
        groups = groups_of(tmp_path / "run", iteration)
        asked = {question for group in groups for question in questions(group).values()}
        failing = {question for question in asked if fault_of(question) in ("error", "garbage", "hang")}
        assert line["judge_questions"] == len(asked) and line["judge_failed"] == len(failing) > 0
        assert line["judge_requests"] > len(asked)
        errors = [response.get("error") for group in groups for response in group["responses"]]
        assert line["reward_errors"] == sum(error is not None for error in errors) > 0
        for group in groups:
            preference = np.array(group["preference"])
            for (i, j), question in questions(group).items():
                is_tie = question in failing or questions(group)[j, i] in failing
                assert (preference[i, j] == 0.5) == is_tie


def test_without_any_judge_the_run_stops_and_continues(task: Path, servers: list[JudgeServer], tmp_path: Path) -> None:
    proxy = FaultyProxy(servers[0].url, TIMEOUT_S)
    proxy.is_faulty = False
    run, iterations = tmp_path / "run", 12
    changes = JUDGE | {"reward.judge.urls": f"[{proxy.url}]", "train.iterations": iterations}
    arguments = tiny_task.overrides(task, run, **changes)
    process = processes.start(
        tiny_task.command(arguments, 1), env=tiny_task.environment(), stderr=subprocess.PIPE, text=True
    )
    tiny_task.wait_for_step(run, 4, process)
    proxy.is_lost = True
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1, said[-4000:]
    message = said[said.index("training stopped: ") :]
    assert "answered none of the questions of iteration" in message and "no judge server is left" in message
    assert "checkpoint.load=latest" in message and "Traceback" not in said
    stopped = tiny_task.steps(run)
    unscored = stopped[-1]["iteration"] + 1
    assert f"of iteration {unscored}," in message
    assert not rollout_path(run, unscored).exists()

    proxy.is_lost = False
    done = tiny_task.run([*arguments, "checkpoint.load=latest"])
    proxy.close()
    assert done.returncode == 0, done.stderr[-4000:]
    lines = tiny_task.steps(run)
    assert lines[: len(stopped)] == stopped
    assert [line["step"] for line in lines] == list(range(1, 3 * iterations + 1))
    assert all(line["judge_failed"] == 0 for line in lines if line["iteration"] >= unscored)
