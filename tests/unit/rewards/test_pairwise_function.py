"""A user's own preference in real worker processes: both orders averaged, every failure a tie of its own pair."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from sppo_megatron.batch.targets import build_targets
from sppo_megatron.config import RewardConfig
from sppo_megatron.objective.sppo import Sppo
from sppo_megatron.rewards.registry import build_scorer
from sppo_megatron.types import Group, Prompt, Response

PREFERENCES = """
import math, os

def longer(prompt, first, second, answer):
    open("calls", "a").write(f"{prompt}|{first}|{second}|{answer}\\n")
    lead = len(first) - len(second) + (0.5 if answer == "first" else 0.0)
    return 1 / (1 + math.exp(-lead))

def hostile(prompt, first, second, answer):
    if first == "raise": raise KeyError("boom")
    if first == "hang":
        while True: pass
    if first == "die": os._exit(7)
    if first == "above": return 1.5
    if first == "nothing": return None
    return 1.0

def of_one_response(prompt, response, answer):
    return 1.0
"""
IDS = np.array([1], dtype=np.int32)


@pytest.fixture(autouse=True)
def preferences_folder(tmp_path, monkeypatch):
    (tmp_path / "own_preferences.py").write_text(PREFERENCES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("own_preferences", None)


def make_group(*texts, prompt="p", answer=None):
    return Group(Prompt(0, IDS, prompt, answer), [Response(IDS, text, correct=True, error="old") for text in texts])


def score(groups, name, **settings):
    scorer = build_scorer(RewardConfig(kind="pairwise_function", function=f"own_preferences:{name}", **settings))
    assert not scorer.needs_answer
    try:
        return scorer.score(groups), scorer.metrics
    finally:
        scorer.close()


def test_both_orders_are_averaged_and_equal_questions_asked_once(preferences_folder):
    texts = ["a", "bbb", "cc", "a"]
    fair, unfair = make_group(*texts), make_group("a", "cc", answer="first")
    [fair, unfair], metrics = score([fair, unfair], "longer")

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    gaps = np.array([[len(a) - len(b) for b in texts] for a in texts])
    np.testing.assert_allclose(fair.preference, sigmoid(gaps), atol=1e-12)
    assert unfair.preference[1, 0] == pytest.approx((sigmoid(1.5) + 1 - sigmoid(-0.5)) / 2, abs=1e-12)
    assert [response.correct for response in fair.responses] == [None] * 4
    assert [response.error for response in fair.responses] == [None] * 4
    np.testing.assert_allclose([r.reward for r in fair.responses], fair.preference.mean(axis=1), atol=1e-12)
    calls = (preferences_folder / "calls").read_text().splitlines()
    assert len(calls) == len(set(calls)) == 8 and "p|cc|a|first" in calls and "p|a|bbb|None" in calls
    assert metrics["pairwise_function_questions"] == 8 and metrics["pairwise_function_failed"] == 0
    targets = build_targets([fair], Sppo(eta=4.0, reward="win_rate"))
    np.testing.assert_allclose(targets.target, 4 * (fair.preference.mean(axis=1) - 0.5), atol=1e-6)


def test_each_failure_is_a_tie_of_its_own_pairs(caplog):
    """One order without an answer is a pair without one; the error is both responses', and no other pair pays."""
    said = {
        "raise": "KeyError: 'boom'",
        "hang": "reward.timeout_s=0.5",
        "die": "died",
        "above": "returned 1.5, not a probability in [0, 1]",
        "nothing": "returned None",
    }
    groups = [make_group("fine", kind, "fine") for kind in said] + [make_group("fine", "good")]
    groups, metrics = score(groups, "hostile", timeout_s=0.5)
    for group, reason in zip(groups, said.values(), strict=False):
        np.testing.assert_array_equal(group.preference, np.full((3, 3), 0.5))
        assert all(reason in (response.error or "") for response in group.responses)
        assert [response.reward for response in group.responses] == [0.5] * 3
    assert [response.error for response in groups[-1].responses] == [None, None]
    assert metrics["pairwise_function_questions"] == 12 and metrics["pairwise_function_failed"] == 5
    assert "failed on 5 of 12 questions" in caplog.text


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (None, "pairwise_function and reward.function=module:name belong together"),
        ("own_preferences:of_one_response", r"is called as f\(prompt, first, second, answer\), which .* refuses"),
        ("own_preferences:shorter", "has no 'shorter'"),
    ],
)
def test_what_is_wrong_is_said_with_a_fix(function, message):
    with pytest.raises(ValueError, match=message):
        build_scorer(RewardConfig(kind="pairwise_function", function=function))
