"""Evaluation during a run: win rates by the training's own preference, and the best checkpoint kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sppo_megatron.objective import wilson_interval
from tests.integration import tiny_task
from tests.integration.offline_commands import run as run_command
from tests.integration.offline_commands import succeed

ITERATIONS = 4


def more_digits(prompt: str, first: str, second: str, answer: str | None) -> float:
    """P(first wins): the response with more digits is the better one."""
    gap = sum(map(str.isdigit, first)) - sum(map(str.isdigit, second))
    return max(0.05, min(0.95, 0.5 + 0.15 * gap))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation")
    task, output = tiny_task.make_task(folder / "task"), folder / "run"
    changes = {
        "objective": "sppo_win_rate",
        "reward": "pairwise_function",
        "reward.kind": "pairwise_function",
        "reward.function": "tests.integration.test_evaluation_run:more_digits",
        "eval.interval": 1,
        "eval.num_samples_per_prompt": 2,
        "eval.temperature": 1.0,
        "checkpoint.save_interval": 2,
        "checkpoint.keep_last": 1,
        "train.iterations": ITERATIONS,
        "optimizer.lr": 5e-3,
    }
    done = tiny_task.run(tiny_task.overrides(task, output, **changes), ranks=2)
    assert done.returncode == 0, done.stderr[-4000:]
    return output


def answers(run: Path, iteration: int) -> list[dict]:
    path = run / "evaluations" / f"iteration_{iteration:06d}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_win_rates_are_those_of_the_written_answers(run: Path) -> None:
    lines = tiny_task.evaluations(run)
    assert [line["eval_iteration"] for line in lines] == list(range(ITERATIONS + 1))
    assert lines[0]["eval_win_rate_initial"] == 0.5 and "eval_win_rate_previous" not in lines[0]
    for number, line in enumerate(lines[1:], start=1):
        for name, other in (("initial", 0), ("previous", number - 1)):
            wins = [
                (more_digits("", a["text"], b["text"], None) + 1 - more_digits("", b["text"], a["text"], None)) / 2
                for mine, theirs in zip(answers(run, number), answers(run, other), strict=True)
                for a, b in zip(mine["responses"], theirs["responses"], strict=True)
            ]
            mean = sum(wins) / len(wins)
            prompts = len(answers(run, number))
            ends = [line[f"eval_win_rate_{name}_{end}"] for end in ("low", "high")]
            assert line[f"eval_win_rate_{name}"] == pytest.approx(mean, abs=1e-9)
            assert ends == pytest.approx(wilson_interval(mean, prompts), abs=1e-9)
        assert line["eval_reward_mean"] == line["eval_win_rate_initial"]
    assert lines[-1]["eval_win_rate_initial"] > 0.6  # it learned


def test_the_best_checkpoint_is_kept(run: Path) -> None:
    lines = tiny_task.evaluations(run)
    best = max(lines, key=lambda line: line["eval_reward_mean"])  # the first of equals
    link = run / "checkpoints" / "best"
    assert link.is_symlink() and link.resolve().name == f"step_{best['eval_step']:08d}"
    kept = {path.name for path in (run / "checkpoints").glob("step_*")}
    assert kept == {link.resolve().name, f"step_{lines[-1]['eval_step']:08d}"}
    state = json.loads((link / "trainer_state.json").read_text())
    assert (state["best_step"], state["best_value"]) == (best["eval_step"], best["eval_reward_mean"])


def evaluation(run: Path, **changes: object) -> list[str]:
    """Of the model that the run began with, as the run evaluates."""
    task = run.parent / "task"
    values = {
        "precision": "fp32",
        "model.hf_path": task / "start",
        "model.make_vocab_size_divisible_by": 8,
        "data.eval_path": task / "eval.jsonl",
        "rollout.max_response_length": 6,
        "eval.num_samples_per_prompt": 2,
        "eval.temperature": 1.0,
    }
    return [*(f"{key}={value}" for key, value in (values | changes).items()), "--batch-size", "3"]


def test_a_checkpoint_evaluated_alone_is_as_good_as_in_the_run(run: Path) -> None:
    """The same answers, and the same win rate, of the best checkpoint, in another layout."""
    best = max(tiny_task.evaluations(run), key=lambda line: line["eval_reward_mean"])
    reward = {"reward": "pairwise_function", "reward.function": "tests.integration.test_evaluation_run:more_digits"}
    arguments = evaluation(run, **reward, **{"model.hf_path": run / "checkpoints" / "best"})
    output, start = run.parent / "alone", run / "evaluations" / "iteration_000000.jsonl"
    done = succeed("evaluate", *arguments, "--output", output, "--against", start)
    assert sorted(path.name for path in output.iterdir()) == [
        "answers.jsonl",
        "config.yaml",
        "metrics.jsonl",
        "result.json",
    ]
    result = json.loads((output / "result.json").read_text())
    win_rate = result["sets"]["all"]["estimates"]["win_rate"]
    assert win_rate["value"] == pytest.approx(best["eval_win_rate_initial"]) and "win_rate" in done.stdout
    assert win_rate["low"] < win_rate["value"] < win_rate["high"]
    assert "evaluate" in result["command"] and result["versions"]["torch"] and len(result["model"]["digest"]) == 64
    mine = [json.loads(line) for line in (output / "answers.jsonl").read_text().splitlines()]
    theirs = answers(run, best["eval_iteration"])
    for group, other in zip(mine, theirs, strict=True):
        assert [r["token_ids"] for r in group["responses"]] == [r["token_ids"] for r in other["responses"]]
    page = succeed("report", output)
    assert "0 optimizer steps" in page.stdout and (output / "report.html").stat().st_size > 10_000


def test_a_hugging_face_folder_is_evaluated_with_scores(run: Path) -> None:
    output = run.parent / "scored"
    arguments = [*evaluation(run, reward="character_share"), "--output", output]
    succeed("evaluate", *arguments)
    whole = (output / "answers.jsonl").read_bytes()
    estimates = json.loads((output / "result.json").read_text())["sets"]["all"]["estimates"]
    assert {"reward_mean", "exact_match", "pass_at_1", "pass_at_2", "maj_at_2"} == estimates.keys()
    rewards = [response["reward"] for line in whole.splitlines() for response in json.loads(line)["responses"]]
    assert estimates["reward_mean"]["value"] == pytest.approx(sum(rewards) / len(rewards))
    again = run_command("evaluate", *arguments)
    assert again.returncode == 2 and "exists: give another --output, or --overwrite" in again.stderr
