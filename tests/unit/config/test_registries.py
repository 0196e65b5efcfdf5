"""The names that a key offers are those that the room behind it knows."""

from __future__ import annotations

import re

from sppo_megatron.config import all_keys
from sppo_megatron.config.keys import choices
from sppo_megatron.config.reference import meaning
from sppo_megatron.objective import PAIRWISE_KINDS
from sppo_megatron.rewards.registry import REWARDS


def test_pairs():
    assert choices(all_keys()["objective.pairwise"].hint) == [*PAIRWISE_KINDS, None]


def test_rewards():
    """The page of all keys names every kind."""
    assert set(re.findall(r"\w+", meaning(all_keys()["reward.kind"]))) >= set(REWARDS)
