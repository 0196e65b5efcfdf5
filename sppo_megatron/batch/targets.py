"""From scored groups to columns of all responses: rewards, win rates, and what the objective makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sppo_megatron.errors import ConfigError
from sppo_megatron.objective import length_reward, preference_from_scores, win_rates
from sppo_megatron.objective.base import Objective
from sppo_megatron.types import Group


@dataclass(frozen=True, eq=False)
class Targets:
    """One entry per response, B responses, groups one after the other in their order. All on the CPU.

    rewards: float64 [B], as scored; the win rate of a response that has no scalar reward.
    win_rates: float64 [B], or None unless the objective needs them.
    values: float64 [B], what baselines are taken from: rewards or win rates, plus the weighted length reward.
    group_ids: int64 [B], the group's place in the list. lengths: int64 [B], tokens that count.
    correct: bool [B], or None unless every response has it.
    columns: float64 [B] each, of `Objective.columns`, the target δ among them.
    """

    rewards: Tensor
    win_rates: Tensor | None
    values: Tensor
    group_ids: Tensor
    lengths: Tensor
    correct: Tensor | None
    columns: dict[str, Tensor]

    @property
    def target(self) -> Tensor:
        """float64 [B], δ in nats."""
        return self.columns["target"]


def build_targets(groups: Sequence[Group], objective: Objective) -> Targets:
    """Computed in float64. All responses of a prompt must be here: baselines are per group.

    Raises ConfigError naming the group: no responses, a missing reward, neither preference nor rewards for a win
    rate, a preference that isn't one; or if a length reward is wanted and correctness isn't defined.
    """
    rates = _win_rates(groups, objective.win_rate_estimator) if objective.needs.win_rates else None
    responses = [response for group in groups for response in group.responses]
    group_ids = torch.tensor([place for place, group in enumerate(groups) for _ in group.responses], dtype=torch.int64)
    lengths = torch.tensor([response.length for response in responses], dtype=torch.int64)
    correct = None
    if all(response.correct is not None for response in responses):
        correct = torch.tensor([bool(response.correct) for response in responses], dtype=torch.bool)

    rewards = _rewards(groups, rates)
    values = rewards if rates is None else rates
    if objective.length_reward_weight:
        if correct is None:
            raise ConfigError(
                "objective.length_reward_weight needs to know which responses are correct, and this reward doesn't "
                "say; let the reward function return (reward, correct), or set the weight to 0"
            )
        values = values + objective.length_reward_weight * length_reward(lengths.double(), correct, group_ids)
    return Targets(rewards, rates, values, group_ids, lengths, correct, objective.columns(values, group_ids))


def _rewards(groups: Sequence[Group], rates: Tensor | None) -> Tensor:
    """float64 [B]. Raises ConfigError if a response has neither a reward nor a win rate."""
    rewards: list[float] = []
    for place, group in enumerate(groups):
        if not group.responses:
            raise ConfigError(f"{_name(place, group)} has no responses")
        for number, response in enumerate(group.responses):
            if response.reward is not None:
                rewards.append(response.reward)
            elif rates is not None:
                rewards.append(float(rates[len(rewards)]))
            else:
                raise ConfigError(f"{_name(place, group)}: response {number} has no reward; score the groups first")
    return torch.tensor(rewards, dtype=torch.float64)


def _win_rates(groups: Sequence[Group], estimator: str) -> Tensor:
    """float64 [B]. Group by group, since K may differ."""
    rates = []
    for place, group in enumerate(groups):
        try:
            rates.append(win_rates(_preference(group)[None], estimator)[0])
        except ValueError as error:
            raise ConfigError(f"{_name(place, group)}: {error}") from None
    return torch.cat(rates) if rates else torch.zeros(0, dtype=torch.float64)


def _preference(group: Group) -> Tensor:
    """float64 [K, K]: the judge's matrix, or Bradley–Terry on the rewards."""
    k = len(group.responses)
    if group.preference is not None:
        preference = torch.as_tensor(group.preference, dtype=torch.float64)
        if preference.shape != (k, k):
            raise ConfigError(f"preference is {list(preference.shape)} for {k} responses")
        return preference
    scores = [response.reward for response in group.responses if response.reward is not None]
    if len(scores) < k:
        raise ConfigError("objective.reward=win_rate needs a preference matrix, or a reward for every response")
    return preference_from_scores(torch.tensor(scores, dtype=torch.float64))


def _name(place: int, group: Group) -> str:
    return f"group {place} (prompt {group.prompt.index})"
