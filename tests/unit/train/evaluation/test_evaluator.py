"""Win rates against earlier policies: by scores and by preferences, kept over a resume."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch.distributed as dist

from sppo_megatron.config import RewardConfig
from sppo_megatron.errors import ConfigError
from sppo_megatron.rewards.registry import build_scorer
from sppo_megatron.train.evaluation.evaluator import Evaluator, judged_by
from sppo_megatron.train.evaluation.measures import Right
from sppo_megatron.types import Group, Prompt, Response

PROMPTS = [Prompt(i, np.array([i + 1], np.int32), text=f"prompt {i}", answer="7") for i in range(4)]
SCORES = {"kind": "numeric"}
PREFERENCES = {"kind": "pairwise_function", "function": "tests.unit.train.evaluation.test_evaluator:longer_is_better"}


def refuses(prompt: str, first: str, second: str, answer: str | None) -> float:
    """Fails about prompts 1 and 3."""
    if prompt in ("prompt 1", "prompt 3"):
        raise RuntimeError("no opinion")
    return 0.9 if len(first) > len(second) else 0.1


def longer_is_better(prompt: str, first: str, second: str, answer: str | None) -> float:
    return 0.5 + 0.1 * np.clip(len(first) - len(second), -4, 4)


class Collector:
    """Answers as it is told: one list of texts for each evaluation, a text for each prompt (and sample)."""

    def __init__(self, *evaluations: list[list[str]]) -> None:
        self.evaluations = iter(evaluations)

    def collect(self, prompts: list[Prompt], iteration: int) -> list[Group]:
        assert iteration == 0  # the seeds of every evaluation are the same
        answers = next(self.evaluations)
        return [
            Group(prompt, [Response(np.arange(1 + len(text), dtype=np.int32), text) for text in texts])
            for prompt, texts in zip(prompts, answers, strict=True)
        ]


@pytest.fixture(scope="module", autouse=True)
def one_rank(tmp_path_factory):
    dist.init_process_group(
        "gloo", init_method=f"file://{tmp_path_factory.mktemp('store') / 's'}", rank=0, world_size=1
    )
    yield
    dist.destroy_process_group()


def evaluator(reward: dict, *evaluations, folder=None) -> Evaluator:
    return Evaluator(Collector(*evaluations), build_scorer(RewardConfig(**reward)), PROMPTS, folder)


def test_scores_win_tie_and_lose(tmp_path):
    start = [["7"], ["1"], ["1"], ["7"]]
    second = [["7"], ["7"], ["1"], ["1"]]  # tie, win, tie, loss
    third = [["7"], ["7"], ["7"], ["7"]]  # against the start: tie, win, win, tie; against the second: 0, 0, win, win
    of = evaluator(SCORES, start, second, third, folder=tmp_path)
    first = of.evaluate(0)
    assert (first["eval_reward_mean"], first["eval_exact_match"], first["eval_win_rate_initial"]) == (0.5, 0.5, 0.5)
    assert not [
        name for name in first if "previous" in name or ("win_rate" in name and name.endswith(("_low", "_high")))
    ]
    metrics = of.evaluate(3)
    assert metrics["eval_win_rate_initial"] == metrics["eval_win_rate_previous"] == 0.5
    metrics = of.evaluate(4)
    assert metrics["eval_win_rate_initial"] == metrics["eval_win_rate_previous"] == 0.75
    # Wilson's interval of 3 in 4
    assert (metrics["eval_win_rate_initial_low"], metrics["eval_win_rate_initial_high"]) == pytest.approx(
        (0.3006, 0.9544), abs=1e-4
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"iteration_00000{i}.jsonl" for i in (0, 3, 4)]
    of.scorer.close()


def test_preferences_are_asked_between_the_two_answers(tmp_path):
    start = [["aa", "b"], ["aa", "b"], ["aa", "b"], ["aa", "b"]]
    second = [["aaa", "b"], ["a", "bb"], ["aa", "bbbbb"], ["aaaaaaaa", "b"]]
    gaps = np.clip([[1, 0], [-1, 1], [0, 4], [6, 0]], -4, 4)
    of = evaluator(PREFERENCES, start, second, folder=tmp_path)
    first = of.evaluate(0)
    assert first["eval_reward_mean"] == first["eval_win_rate_initial"] == 0.5
    metrics = of.evaluate(1)
    expected = float(np.mean(0.5 + 0.1 * gaps))
    assert metrics["eval_win_rate_initial"] == pytest.approx(expected)
    assert metrics["eval_win_rate_previous"] == pytest.approx(expected)
    assert metrics["eval_reward_mean"] == pytest.approx(expected)  # a preference has no other
    assert of.scorer.metrics["pairwise_function_questions"] > 0
    stored = [[r.reward for r in group.responses] for group in of.previous]
    np.testing.assert_allclose(stored, 0.5 + 0.1 * gaps)
    assert all(group.preference is None for group in of.previous)
    of.scorer.close()


@pytest.mark.parametrize("reward", [SCORES, PREFERENCES], ids=["scores", "preferences"])
def test_a_resume_compares_with_the_same_answers(tmp_path, reward):
    rounds = [[["7"], ["1"], ["12"], ["7"]], [["7"], ["123"], ["7"], ["7"]], [["1"], ["7"], ["7"], ["77777"]]]
    whole = evaluator(reward, *rounds)
    expected = [whole.evaluate(i) for i in range(3)]
    stopped = evaluator(reward, *rounds[:2])
    assert [stopped.evaluate(i) for i in range(2)] == expected[:2]
    stopped.write(tmp_path)
    resumed = evaluator(reward, rounds[2])
    resumed.read(tmp_path)
    assert resumed.evaluate(2) == expected[2]
    for each in (whole, stopped, resumed):
        each.scorer.close()


def test_answers_to_other_prompts_are_left_out(tmp_path, caplog):
    first = evaluator(SCORES, [["7"]] * 4)
    first.evaluate(0)
    first.write(tmp_path)
    other = evaluator(SCORES, [["7"]] * 2)
    other.prompts = PROMPTS[:2]
    with caplog.at_level(logging.WARNING):
        other.read(tmp_path)
    assert "no win rate against them" in caplog.text
    metrics = other.evaluate(5)
    assert metrics["eval_reward_mean"] == 1.0 and "eval_win_rate_initial" not in metrics
    assert "eval_win_rate_previous" not in metrics


def test_comparisons_that_fail_are_ties_and_counted(tmp_path):
    refusing = PREFERENCES | {"function": "tests.unit.train.evaluation.test_evaluator:refuses"}
    of = evaluator(refusing, [["a"]] * 4, [["bb"]] * 4, folder=tmp_path)
    assert of.evaluate(0)["eval_reward_errors"] == 0
    metrics = of.evaluate(1)
    assert metrics["eval_win_rate_initial"] == pytest.approx((0.9 + 0.5 + 0.9 + 0.5) / 4)
    assert metrics["eval_reward_errors"] == 2
    assert "no opinion" in (tmp_path / "iteration_000001.jsonl").read_text()
    of.scorer.close()


def test_another_number_of_answers_is_not_compared(caplog):
    of = evaluator(SCORES, [["7"]] * 4, [["7", "1"]] * 4, [["7", "7"]] * 4)
    of.evaluate(0)
    with caplog.at_level(logging.WARNING):
        metrics = of.evaluate(1)
    assert "eval.num_samples_per_prompt changed" in caplog.text
    assert not [name for name in metrics if "win_rate" in name]
    assert of.evaluate(2)["eval_win_rate_previous"] == 0.75


def test_several_answers_to_a_prompt_of_several_sets():
    """Right answers of four: 4, 2 (outvoted), 1 and 0; "a" has the first two prompts."""
    answers = [["7"] * 4, ["7", "1", "1", "1 + 6 = 7"], ["1", "2", "7", "3"], ["", "1", "1", "2"]]
    of = evaluator(SCORES, answers)
    of.prompts = [replace(prompt, source="a" if prompt.index < 2 else "b") for prompt in PROMPTS]
    metrics = of.evaluate(0)
    expected = {
        "eval_reward_mean": 7 / 16,
        "eval_reward_mean/a": 6 / 8,
        "eval_pass_at_1": 7 / 16,
        "eval_pass_at_2": (1 + 5 / 6 + 1 / 2 + 0) / 4,
        "eval_pass_at_4": 3 / 4,
        "eval_pass_at_4/b": 1 / 2,
        "eval_maj_at_4": (1 + 1 / 2 + 1 / 4 + 0) / 4,
        "eval_maj_at_4/a": 3 / 4,
        "eval_response_length_mean/b": (2 + 2 + 2 + 2 + 1 + 2 + 2 + 2) / 8,
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    assert metrics["eval_maj_at_4_low/a"] < 3 / 4 < metrics["eval_maj_at_4_high/a"]
    of.scorer.close()


def test_the_user_says_what_is_right():
    of = evaluator({"kind": "character_share"}, [["7", "17"], ["1", "2"], ["7", "7"], ["72", "27"]])
    assert of.evaluate(0)["eval_pass_at_1"] == 3 / 8
    of = evaluator({"kind": "character_share"}, [["7", "17"], ["1", "2"], ["7", "7"], ["72", "27"]])
    of.right = Right(0.5)
    metrics = of.evaluate(0)
    assert (metrics["eval_pass_at_1"], metrics["eval_exact_match"]) == (4 / 8, 3 / 8)


def test_preferences_have_no_right_answers():
    metrics = evaluator(PREFERENCES, [["a", "b"]] * 4).evaluate(0)
    assert not [name for name in metrics if "_at_" in name or "exact" in name]


def test_which_metric_says_what_is_best():
    metrics = {"eval_reward_mean": 0.25, "eval_win_rate_initial": 0.75}
    assert judged_by(metrics, "auto") == 0.25
    assert judged_by(metrics, "eval_win_rate_initial") == 0.75
    assert judged_by(metrics, None) is None
    for later in ("eval_win_rate_previous", "eval_win_rate_previous_low", "eval_win_rate_initial_low"):
        assert judged_by(metrics, later) is None, "there is none before the second evaluation"
    assert judged_by({**metrics, "eval_win_rate_previous": 0.6}, "eval_win_rate_previous") == 0.6
    with pytest.raises(ConfigError, match=r"keep_best=eval_win_rate_last is no metric.*eval_win_rate_previous"):
        judged_by(metrics, "eval_win_rate_last")
    with pytest.raises(ConfigError, match=r"keep_best=eval_exact_match is no metric.*eval_reward_mean"):
        judged_by(metrics, "eval_exact_match")
