"""No reward: for SPIN, whose winners are given."""

from __future__ import annotations

from sppo_megatron.types import Group


class NoReward:
    """Every response's reward is 0, and none is right or wrong."""

    needs_answer = False
    gives_preferences = False

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}

    def score(self, groups: list[Group]) -> list[Group]:
        """Sets the rewards in place, and returns the same groups."""
        for response in (response for group in groups for response in group.responses):
            response.reward, response.correct, response.error = 0.0, None, None
        return groups

    def close(self) -> None:
        """Nothing is held open."""
