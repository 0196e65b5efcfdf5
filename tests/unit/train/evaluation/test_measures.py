"""Estimates of scored groups: by hand, and how often their intervals hold the truth."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from sppo_megatron.objective import wilson_interval
from sppo_megatron.train.evaluation.measures import (
    Estimate,
    Right,
    mean_reward,
    measures_of_samples,
    sample_sizes,
    share,
)
from sppo_megatron.types import Group, Prompt, Response

TOKENS = np.array([1], np.int32)


def group(*answers: tuple[str, float], right: str = "7") -> Group:
    prompt = Prompt(0, TOKENS, answer=right)
    return Group(prompt, [Response(TOKENS, text, reward=reward, correct=reward == 1) for text, reward in answers])


def test_what_is_right():
    right, half = Right(), Right(0.5)
    scored = [Response(TOKENS, reward=reward, correct=correct) for reward, correct in [(0.9, True), (1.5, False)]]
    assert [right(response) for response in scored] == [True, False], "what the reward says"
    assert [half(response) for response in scored] == [True, True], "what the user says goes before"
    silent = [Response(TOKENS, reward=reward) for reward in (0.49, 0.5, 1.0)]
    assert [right(response) for response in silent] == [False, False, True]
    assert [half(response) for response in silent] == [False, True, True]
    assert not Right(0.0)(Response(TOKENS, reward=1.0, error="timeout")) and not Right(0.0)(Response(TOKENS))


def test_the_sizes():
    assert [sample_sizes(n) for n in (1, 2, 5, 8)] == [[1], [1, 2], [1, 2, 4, 5], [1, 2, 4, 8]]


def test_samples_by_hand():
    """Two of four right and voted out, one of four right and winning a third, none right."""
    groups = [
        group(("7", 1.0), ("8", 0.0), ("8", 0.0), ("seven 7", 1.0), right="7"),
        group(("7", 1.0), ("8", 0.0), ("9", 0.0), ("?", 0.0)),
        group(("6", 0.0), ("6", 0.0), ("6", 0.0), ("6", 0.0)),
    ]
    found = dict(measures_of_samples(groups, Right()))
    assert list(found) == ["pass_at_1", "pass_at_2", "pass_at_4", "maj_at_2", "maj_at_4"]
    expected = {
        "pass_at_1": Fraction(2 + 1, 12),
        "pass_at_2": Fraction(1, 3) * (Fraction(5, 6) + Fraction(1, 2)),
        "pass_at_4": Fraction(2, 3),
        "maj_at_4": Fraction(1, 3) * (Fraction(1, 2) + Fraction(1, 3)),
    }
    for name, value in expected.items():
        assert found[name].value == pytest.approx(float(value)), name
    assert all(e.low < e.value < e.high for e in found.values())
    assert share(groups, lambda response: response.correct) == found["pass_at_1"]
    assert mean_reward(groups).value == pytest.approx(0.25)
    assert not dict(measures_of_samples([group(("7", 1.0))], Right()))


def test_without_texts_nobody_votes():
    groups = [Group(Prompt(0, TOKENS), [Response(TOKENS, reward=1.0)] * 2)]
    assert list(dict(measures_of_samples(groups, Right()))) == ["pass_at_1", "pass_at_2"]


def test_a_mean_reward_is_as_certain_as_its_prompts():
    """By the formula of clustered errors (2411.00640, equation 4), over all pairs of answers of a prompt."""
    rng = np.random.default_rng(0)
    rewards = rng.normal(3.0, 1.0, (9, 1)) + rng.normal(0.0, 0.3, (9, 4))
    groups = [group(*[("", reward) for reward in row]) for row in rewards]
    found, away = mean_reward(groups), rewards - rewards.mean()
    error = np.sqrt(sum(a * b for row in away for a in row for b in row)) / rewards.size * np.sqrt(9 / 8)
    assert (found.value, found.high - found.value) == pytest.approx((rewards.mean(), 1.959963984540054 * error))
    assert mean_reward(groups[:1]) == Estimate(rewards[0].mean(), None, None)


def test_one_answer_a_prompt_is_wilsons_interval():
    found = share([group(("", float(i < 7))) for i in range(40)], lambda response: response.correct)
    assert (found.low, found.high) == pytest.approx(wilson_interval(7 / 40, 40))


@pytest.mark.parametrize("spread", [0.3, 3.0, 300.0], ids=["all or nothing", "some of both", "independent"])
def test_intervals_of_shares_hold_the_truth(spread):
    """However alike the answers to a prompt are: 60 prompts with 8 answers, right with a probability of mean 0.7."""
    rng = np.random.default_rng(1)
    held, lengths = [], []
    for _ in range(120):
        right = rng.binomial(1, rng.beta(0.7 * spread, 0.3 * spread, (60, 1)), (60, 8))
        found = share([group(*[("", float(r)) for r in row]) for row in right], lambda response: response.correct)
        held.append(found.low <= 0.7 <= found.high)
        lengths.append(found.high - found.low)
    assert np.mean(held) > 0.91
    of_prompts, of_answers = (np.diff(wilson_interval(0.7, count))[0] for count in (60, 480))
    assert of_answers * 0.9 < np.mean(lengths) < of_prompts * 1.02
