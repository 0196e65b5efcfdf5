"""The configured scorer, and those that are made of others or of nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sppo_megatron.config import RewardConfig
from sppo_megatron.rewards.function_scorers import PairwiseFunction, RewardScorer
from sppo_megatron.rewards.judge import Judge
from sppo_megatron.rewards.model_scorers import PairwiseModel, RewardModel
from sppo_megatron.rewards.scorer import Outcome, Scorer, total, with_rewards
from sppo_megatron.rewards.text import Decode
from sppo_megatron.rewards.verifiers import ANSWER_CHECKS
from sppo_megatron.types import Group


def build_scorer(config: RewardConfig, decode: Decode | None = None) -> Scorer:
    """decode: for prompts and responses that carry no text. Doesn't communicate with other ranks.

    Raises ConfigError, with what to change, as a kind's constructor does.
    """
    if config.kind == "judge":
        return Judge(config.judge, decode)
    if config.kind == "reward_model":
        return RewardModel(config, decode)
    if config.kind == "pairwise_model":
        return PairwiseModel(config, decode)
    if config.kind == "pairwise_function":
        return PairwiseFunction(config, decode)
    if config.kind == "none":
        return NoReward()
    if config.kind == "mixture":
        return Mixture([_component(config, entry, decode) for entry in config.mixture])
    return RewardScorer(config, decode)


def check_answer(config: RewardConfig, answer: str) -> None:
    """Raises ValueError for the answer of a prompt that the reward can't compare responses with."""
    for kind in (config.kind, *(entry["kind"] for entry in config.mixture)):
        if kind in ANSWER_CHECKS:
            ANSWER_CHECKS[kind](answer)


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


def _component(config: RewardConfig, entry: dict, decode: Decode | None) -> Component:
    """An entry's kind and function; every other setting is the reward's own."""
    function = entry.get("function")
    scorer = build_scorer(replace(config, kind=entry["kind"], function=function, mixture=[]), decode)
    name = entry["kind"] if function is None else function.rpartition(":")[2]
    return Component(name, float(entry["weight"]), scorer)
