"""Win rates against a pool, by the definition: the mean over the pool's answers of both orders' averages."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sppo_megatron.config import RewardConfig
from sppo_megatron.config.compose import compose_config
from sppo_megatron.data.rollout_file import write_groups
from sppo_megatron.errors import ConfigError
from sppo_megatron.rewards.registry import build_scorer, check_reward
from sppo_megatron.types import Group, Prompt, Response

JUDGE = RewardConfig(kind="pairwise_function", function="tests.unit.rewards.test_opponents:longer")
TOKENS = np.array([1], np.int32)


def longer(prompt: str, first: str, second: str, answer: str | None) -> float:
    """Leans to the first place; fails on "x"."""
    if "x" in first + second:
        raise RuntimeError("no opinion")
    return float(np.clip(0.6 + 0.05 * (len(first) - len(second)), 0, 1))


def group(prompt: str, *texts: str) -> Group:
    return Group(Prompt(0, TOKENS, prompt), [Response(TOKENS, text) for text in texts])


@pytest.fixture
def pool(tmp_path):
    path = tmp_path / "pool.jsonl"
    write_groups(path, [group("one", "a", "bbbb", "ccccccc"), group("two", "dd"), group("one", "eeeee")])
    return str(path)


def scored(pool: str, *groups: Group, **more: str) -> tuple[list[Group], dict[str, float]]:
    scorer = build_scorer(replace(JUDGE, opponents=pool, **more))
    assert not scorer.gives_preferences
    try:
        return scorer.score(groups), scorer.metrics
    finally:
        scorer.close()


def definition(text: str, opponents: list[str]) -> float:
    both = [(longer("", text, o, None) + 1 - longer("", o, text, None)) / 2 if text != o else 0.5 for o in opponents]
    return sum(both) / len(both)


def test_win_rates_are_the_definitions(pool):
    answers = {"one": ["hhh", "a", "iiiiii"], "two": ["jjjj", "dd"]}
    found, metrics = scored(pool, *[group(prompt, *texts) for prompt, texts in answers.items()])
    opponents = {"one": ["a", "bbbb", "ccccccc", "eeeee"], "two": ["dd"]}
    for each in found:
        expected = [definition(text, opponents[each.prompt.text]) for text in answers[each.prompt.text]]
        np.testing.assert_allclose([response.reward for response in each.responses], expected, atol=1e-12)
        assert each.preference is None
    assert metrics["pairwise_function_questions"] == 2 * (3 * 4 - 1 + 2 - 1), "equal texts are a tie, unasked"


def test_the_policy_against_itself_is_a_half(tmp_path):
    """Against its own group, a response's rate is `include_self`'s."""
    own = group("one", "aa", "bbbb", "c")
    write_groups(tmp_path / "own.jsonl", [own])
    (found,), _ = scored(str(tmp_path / "own.jsonl"), own)
    inside = build_scorer(JUDGE)
    (expected,) = inside.score([own])
    inside.close()
    np.testing.assert_allclose([r.reward for r in found.responses], [r.reward for r in expected.responses], atol=1e-12)
    assert np.mean([r.reward for r in found.responses]) == pytest.approx(0.5)


def test_what_fails_is_a_tie_and_an_error(pool):
    (one, unknown), _ = scored(pool, group("one", "xx", "yy"), group("three", "zz"))
    assert one.responses[0].reward == 0.5 and "no opinion" in str(one.responses[0].error)
    assert one.responses[1].error is None
    assert unknown.responses[0].reward == 0.0 and "no answer to this prompt" in str(unknown.responses[0].error)


def test_with_the_gate_an_opponent_that_says_the_same_is_a_tie(pool):
    (found,), _ = scored(pool, group("two", "  dd "), overlap="same_answer")
    assert found.responses[0].reward == 0.5


def test_what_is_refused(tmp_path, pool):
    with pytest.raises(ConfigError, match="nowhere does not exist: give a rollout file"):
        build_scorer(replace(JUDGE, opponents="nowhere"))
    base = ["model.hf_path=org/model", "reward.kind=pairwise_function", f"reward.function={JUDGE.function}"]
    opponents = f"reward.opponents={pool}"
    assert not list(check_reward(compose_config([*base, opponents])[0], True)), "a number of each response"
    assert any("gives preferences" in problem for problem in check_reward(compose_config(base)[0], True))
    wrong = compose_config(["model.hf_path=org/model", "reward=numeric", opponents])[0]
    assert any("reward.opponents is for rewards that compare" in problem for problem in check_reward(wrong, True))
