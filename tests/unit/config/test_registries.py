"""The names that a key offers are those that the room behind it knows."""

from __future__ import annotations

from sppo_megatron.config import all_keys
from sppo_megatron.config.keys import choices
from sppo_megatron.config.reward import SCALAR_KINDS
from sppo_megatron.objective import PAIRWISE_KINDS
from sppo_megatron.rewards.verifiers import VERIFIERS


def test_pairs():
    assert choices(all_keys()["objective.pairwise"].hint) == [*PAIRWISE_KINDS, None]


def test_rewards():
    """function runs in a worker and reward_model on the device; the others are the registered verifiers."""
    assert {*VERIFIERS, "function", "reward_model"} == set(SCALAR_KINDS)
    assert set(SCALAR_KINDS) < set(choices(all_keys()["reward.kind"].hint) or ())
