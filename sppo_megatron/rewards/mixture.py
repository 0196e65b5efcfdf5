"""A weighted sum of scalar rewards."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from sppo_megatron.rewards.share import Scorer, total
from sppo_megatron.types import Group

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Component:
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

    def score(self, groups: list[Group]) -> list[Group]:
        """Sets reward, correct and error of every response in place, and returns the same groups.

        A response is correct where the first component that defines it says so.
        """
        responses = [response for group in groups for response in group.responses]
        rewards = [0.0] * len(responses)
        correct: list[bool | None] = [None] * len(responses)
        errors: list[list[str]] = [[] for _ in responses]
        metrics = []
        for component in self._components:
            component.scorer.score(groups)
            scores = [float(response.reward or 0.0) for response in responses]
            metrics += [component.scorer.metrics, {f"reward_{component.name}_sum": sum(scores)}]
            for place, response in enumerate(responses):
                rewards[place] += component.weight * scores[place]
                if correct[place] is None:
                    correct[place] = response.correct
                if response.error is not None:
                    errors[place].append(f"{component.name}: {response.error}")
        for place, response in enumerate(responses):
            response.reward, response.correct = rewards[place], correct[place]
            response.error = "; ".join(errors[place]) or None
        self.metrics = total(metrics)
        return groups

    def close(self) -> None:
        for component in self._components:
            component.scorer.close()
