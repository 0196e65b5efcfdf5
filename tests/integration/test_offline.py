"""The three commands of an offline iteration: killed, continued, sharded, under torchrun; then trained on.

Each file must be bit by bit the one of a run that was not interrupted. What is cut off at every single byte is in
tests/unit/data/test_resumable_file.py.
"""

from __future__ import annotations

import math
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from tests.forked import processes
from tests.installed import needs_vllm
from tests.integration import tiny_task
from tests.integration.offline_commands import K, check_log_probs, command, generation, groups_of, run, succeed
from tests.integration.test_win_rate_run import judge, preferred
from tests.unit.rewards.endpoint import Endpoint

PROMPTS = 32


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_task.make_task(tmp_path_factory.mktemp("task"))


@pytest.fixture(scope="module")
def endpoint():
    def slow(endpoint: Endpoint, message: str) -> dict:
        time.sleep(0.002)
        return judge(endpoint, message)

    served = Endpoint(slow)
    yield served
    served.close()


def kill_midway(output: Path, name: str, *arguments: object, ranks: int = 1) -> int:
    """SIGKILL to every process of the job once some groups are written; then tears the last line. Lines left."""
    partial = output.with_name(f"{output.name}.partial")
    process = processes.start(
        command(name, *arguments, "--output", output, ranks=ranks),
        env=tiny_task.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 180
    while not (partial.exists() and partial.read_bytes().count(b"\n") >= 4):
        assert time.monotonic() < deadline and process.poll() is None, "the command ended before it got there"
        time.sleep(0.001)
    processes.kill(process)
    assert partial.exists() and not output.exists(), "it was done before the kill"
    partial.write_bytes(partial.read_bytes()[:-9])
    return partial.read_bytes().count(b"\n")


def scoring(endpoint: Endpoint, source: Path) -> list[object]:
    return ["reward=judge", f"reward.judge.urls=[{endpoint.url}]", "--input", source, "--batch-size", "3"]


@pytest.fixture(scope="module")
def generated(task: Path) -> Path:
    output = task / "rollouts.jsonl"
    done = succeed("generate", *generation(task), "--output", output)
    assert f"group {PROMPTS}/{PROMPTS}" in done.stdout
    return output


@pytest.fixture(scope="module")
def scored(task: Path, generated: Path, endpoint: Endpoint) -> Path:
    output = task / "scored.jsonl"
    succeed("score", *scoring(endpoint, generated), "--output", output)
    return output


def test_every_prompt_is_answered_in_file_order(task: Path, generated: Path) -> None:
    groups, prompts = groups_of(generated), groups_of(task / "train.jsonl")
    assert [(group["prompt"], group["answer"]) for group in groups] == [(p["prompt"], p["answer"]) for p in prompts]
    assert [group["prompt_index"] for group in groups] == list(range(PROMPTS))
    assert all(len(group["responses"]) == K for group in groups)
    assert all(len({tuple(response["token_ids"]) for response in group["responses"]}) > 1 for group in groups)
    check_log_probs(task / "start", generated)


def test_generation_in_shards_one_of_them_killed(task: Path, generated: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "0.jsonl", tmp_path / "1.jsonl"
    arguments = generation(task)
    killed_at = kill_midway(first, "generate", *arguments, "--shard", "0/2")
    refused = run("generate", *arguments, "rollout.seed=8", "--shard", "0/2", "--output", first)
    assert refused.returncode == 2 and "rollout.seed was 7 and is 8" in refused.stderr
    done = succeed("generate", *arguments, "--shard", "0/2", "--output", first)
    assert f"behind {killed_at // 3 * 3} of 15 groups" in done.stderr
    succeed("generate", *arguments, "--shard", "1/2", "--output", second)
    assert first.read_bytes() + second.read_bytes() == generated.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.jsonl", "1.jsonl"]


def test_generation_under_torchrun_in_a_layout(task: Path, generated: Path, tmp_path: Path) -> None:
    """Tensor parallel: the same samples, up to those that rounding turned into another."""
    output = tmp_path / "rollouts.jsonl"
    succeed("generate", *generation(task, parallelism="tp2"), "--output", output, ranks=2)
    same = total = 0
    for group, other in zip(groups_of(output), groups_of(generated), strict=True):
        for response, expected in zip(group["responses"], other["responses"], strict=True):
            total += 1
            if response["token_ids"] == expected["token_ids"]:
                same += 1
                np.testing.assert_allclose(
                    response["rollout_log_probs"], expected["rollout_log_probs"], rtol=1e-4, atol=1e-5
                )
    assert same >= 0.98 * total


@needs_vllm
def test_generation_by_vllm_in_two_ranks_killed(task: Path, tmp_path: Path) -> None:
    arguments = generation(task, **{"rollout": "vllm", "rollout.vllm.kv_cache_memory_mib": 32})
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    succeed("generate", *arguments, "--output", whole, ranks=2)
    check_log_probs(task / "start", whole)
    kill_midway(killed, "generate", *arguments, ranks=2)
    succeed("generate", *arguments, "--output", killed, ranks=2)
    assert killed.read_bytes() == whole.read_bytes()


def test_scores_are_the_judges(generated: Path, scored: Path) -> None:
    for group, source in zip(groups_of(scored), groups_of(generated), strict=True):
        texts = [response["text"] for response in group["responses"]]
        expected = np.array([[preferred(a, b) for b in texts] for a in texts])
        np.testing.assert_allclose(group["preference"], expected, atol=1e-6)
        for response, before, rate in zip(group["responses"], source["responses"], expected.mean(axis=1), strict=True):
            assert response["reward"] == pytest.approx(rate, abs=1e-6)
            assert {key: response[key] for key in before} == before


def test_scoring_in_shards_one_of_them_killed(
    generated: Path, scored: Path, endpoint: Endpoint, tmp_path: Path
) -> None:
    first, second = tmp_path / "0.jsonl", tmp_path / "1.jsonl"
    arguments = scoring(endpoint, generated)
    succeed("score", *arguments, "--shard", "0/2", "--output", first)
    kill_midway(second, "score", *arguments, "--shard", "1/2")
    succeed("score", *arguments, "--shard", "1/2", "--output", second)
    assert first.read_bytes() + second.read_bytes() == scored.read_bytes()


def test_scoring_over_ranks(generated: Path, scored: Path, endpoint: Endpoint, tmp_path: Path) -> None:
    output = tmp_path / "scored.jsonl"
    succeed("score", *scoring(endpoint, generated), "--output", output, ranks=2)
    assert output.read_bytes() == scored.read_bytes()


def test_training_on_the_best_and_the_worst_of_each_group(task: Path, scored: Path, tmp_path: Path) -> None:
    """The paper's pairs: before the first update the loss is their targets' alone, here from the file's matrices."""
    changes = {
        "objective": "sppo_win_rate",
        "objective.pairwise": "sppo",
        "objective.eta": 2.0,
        "rollout": "replay",
        "rollout.engine": "replay",
        "rollout.path": scored,
        "train.iterations": 1,
        "train.prompts_per_iteration": "null",
        "train.minibatch_size": "null",
        "data.train_path": "null",
        "data.eval_path": "null",
    }
    done = tiny_task.run(tiny_task.overrides(task, tmp_path / "run", **changes))
    assert done.returncode == 0, done.stderr[-4000:]
    rates = [np.array(group["preference"]).mean(axis=1) for group in groups_of(scored)]
    pairs = [(rate.max(), rate.min()) for rate in rates if rate.max() > rate.min()]
    expected = np.mean([0.5 * sum((2.0 * (rate - 0.5)) ** 2 for rate in pair) for pair in pairs])
    [step] = tiny_task.steps(tmp_path / "run")
    assert step["loss"] == pytest.approx(expected, rel=1e-4) and len(pairs) > PROMPTS // 2
    assert math.isfinite(step["grad_norm"]) and (tmp_path / "run" / "hf" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("generate", ["rollout=replay", "rollout.path=."], "rollout.engine=replay makes no responses"),
        ("generate", ["data.train_path=/dev/null"], "data.train_path=/dev/null has no prompts"),
        ("generate", ["--shard", "2/2"], "--shard 2/2 is no share"),
        ("generate", ["--batch-size", "0"], "--batch-size 0 must be at least 1"),
        ("score", ["--input", "nowhere.jsonl"], "--input nowhere.jsonl does not exist"),
        ("score", ["--input", __file__], "line 1: not JSON"),
    ],
)
def test_mistakes_are_one_message(task: Path, tmp_path: Path, name: str, arguments: list[str], message: str) -> None:
    first = generation(task) if name == "generate" else []
    done = run(name, *first, *arguments, "--output", tmp_path / "out.jsonl")
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
