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
        """See `weighted_sum` and `Scorer`."""
        scored = [component.scorer.score(groups) for component in self._components]
        metrics = []
        for component, of_component in zip(self._components, scored, strict=True):
            added = sum(float(response.reward or 0.0) for group in of_component for response in group.responses)
            metrics += [component.scorer.metrics, {f"reward_{component.name}_sum": added}]
        self.metrics = total(metrics)
        weights = [(component.name, component.weight) for component in self._components]
        return [weighted_sum(group, weights, parts) for group, *parts in zip(groups, *scored, strict=True)]

    def close(self) -> None:
        for component in self._components:
            component.scorer.close()


def weighted_sum(group: Group, weights: Sequence[tuple[str, float]], parts: Sequence[Group]) -> Group:
    """The group with r = Σ weight · r_part. weights: each part's name and weight. parts: the group as each scored it.

    A response is correct if the first part that defines it says so.
    """
    outcomes = []
    for place in range(len(group.responses)):
        responses = [part.responses[place] for part in parts]
        named = list(zip(weights, responses, strict=True))
        reward = sum(weight * float(response.reward or 0.0) for (_, weight), response in named)
        correct = next((response.correct for response in responses if response.correct is not None), None)
        errors = [f"{name}: {response.error}" for (name, _), response in named if response.error is not None]
        outcomes.append(Outcome(reward, correct, "; ".join(errors) or None))
    return with_rewards(group, outcomes)
