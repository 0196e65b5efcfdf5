"""Rewards that are made of others, or of nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sppo_megatron.rewards.scorer import Outcome, Scorer, total, with_rewards
from sppo_megatron.types import Group


class NoReward:
    """Every response's reward is 0, and none is right or wrong: for SPIN, whose winners are given."""

    needs_answer = False
    gives_preferences = False

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}

    def score(self, groups: Sequence[Group]) -> list[Group]:
        return [with_rewards(group, [Outcome(0.0)] * len(group.responses)) for group in groups]

    def close(self) -> None:
        """Nothing is held open."""


@dataclass(frozen=True)
class Component:
    """One reward of a mixture."""

    name: str
    weight: float
    scorer: Scorer


class Mixture:
    """r = Σ weight · r_component. A component that fails on a response adds its default, weighted, and an error.

    metrics: those of the components, and reward_<name>_sum, each one's rewards before their weights, added up.
    """

    gives_preferences = False

    def __init__(self, components: Sequence[Component]) -> None:
        self._components = list(components)
        self.metrics: dict[str, float] = {}

    @property
    def needs_answer(self) -> bool:
        return any(component.scorer.needs_answer for component in self._components)

    def score(self, groups: Sequence[Group]) -> list[Group]:
        """A response is correct if the first component that defines it says so. See `Scorer`."""
        scored = [component.scorer.score(groups) for component in self._components]
        metrics = []
        for component, of_component in zip(self._components, scored, strict=True):
            added = sum(float(response.reward or 0.0) for group in of_component for response in group.responses)
            metrics += [component.scorer.metrics, {f"reward_{component.name}_sum": added}]
        self.metrics = total(metrics)
        return [
            with_rewards(group, [self._outcome(place, parts) for place in range(len(group.responses))])
            for group, *parts in zip(groups, *scored, strict=True)
        ]

    def close(self) -> None:
        for component in self._components:
            component.scorer.close()

    def _outcome(self, place: int, parts: Sequence[Group]) -> Outcome:
        """parts: one group as each component scored it. place: of a response in it."""
        responses = [part.responses[place] for part in parts]
        named = list(zip(self._components, responses, strict=True))
        reward = sum(component.weight * float(response.reward or 0.0) for component, response in named)
        correct = next((response.correct for response in responses if response.correct is not None), None)
        errors = [f"{component.name}: {response.error}" for component, response in named if response.error is not None]
        return Outcome(reward, correct, "; ".join(errors) or None)
