"""Weighted sums by hand-worked numbers, of real components."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from sppo_megatron.batch.targets import build_targets
from sppo_megatron.config import RewardConfig
from sppo_megatron.objective.sppo import Sppo
from sppo_megatron.rewards.registry import build_scorer
from sppo_megatron.types import Group, Prompt, Response


def make_group(*texts, answer="1284"):
    responses = [Response(np.zeros(len(text), dtype=np.int32), text) for text in texts]
    return Group(Prompt(0, np.array([5], dtype=np.int32), "p", answer), responses)


def make_mixture(*entries, **settings):
    return build_scorer(RewardConfig(kind="mixture", mixture=list(entries), **settings))


def test_rewards_are_added_with_their_weights():
    mixture = make_mixture({"kind": "exact_match", "weight": 1.0}, {"kind": "character_share", "weight": 0.2})
    assert mixture.needs_answer
    [group] = mixture.score([make_group("1284", "1200", "x")])
    assert [r.reward for r in group.responses] == pytest.approx([1.2, 0.1, 0.0])
    assert [(r.correct, r.error) for r in group.responses] == [(True, None), (False, None), (False, None)]
    assert mixture.metrics == pytest.approx({"reward_exact_match_sum": 1.0, "reward_character_share_sum": 1.5})
    mixture.close()


def test_correctness_is_that_of_the_first_which_defines_it_so_a_length_reward_can_follow():
    mixture = make_mixture({"kind": "character_share", "weight": -0.5}, {"kind": "numeric", "weight": 2})
    [group] = mixture.score([make_group("answer 1284", "1284", "no")])
    assert [r.correct for r in group.responses] == [False, True, False]
    assert [r.reward for r in group.responses] == pytest.approx([2.0, 1.5, 0.0])
    targets = build_targets([group], Sppo(length_reward_weight=1.0))
    # Kimi's: 0.5 - (length - min) / (max - min), a wrong answer at most 0; lengths 11, 4, 2
    np.testing.assert_allclose(targets.values, [2.0 - 0.5, 1.5 + 0.5 - 2 / 9, 0.0], atol=1e-6)


def test_a_component_that_fails_adds_its_default_and_says_so(tmp_path, monkeypatch):
    (tmp_path / "mixed_rewards.py").write_text("def fails(prompt, response, answer):\n    raise KeyError(response)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    mixture = make_mixture(
        {"kind": "exact_match", "weight": 1.0},
        {"kind": "function", "function": "mixed_rewards:fails", "weight": 0.5},
        default=-1.0,
        num_workers=1,
    )
    try:
        [group] = mixture.score([make_group("1284")])
    finally:
        mixture.close()
        sys.modules.pop("mixed_rewards", None)
    [response] = group.responses
    assert (response.reward, response.correct) == (0.5, True)
    assert response.error == "fails: KeyError: '1284'"
