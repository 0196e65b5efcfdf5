"""No reward: zeros, and nothing else is asked of the data."""

from __future__ import annotations

import numpy as np

from sppo_megatron.config import RewardConfig
from sppo_megatron.rewards.registry import build_scorer
from sppo_megatron.types import Group, Prompt, Response


def test_every_reward_is_zero():
    ids = np.array([1], np.int32)
    group = Group(Prompt(0, ids), [Response(ids, reward=0.5, correct=True, error="x"), Response(ids)])
    scorer = build_scorer(RewardConfig(kind="none"))
    assert not scorer.needs_answer
    [group] = scorer.score([group])
    assert [(r.reward, r.correct, r.error) for r in group.responses] == [(0.0, None, None)] * 2
