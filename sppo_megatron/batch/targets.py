"""From scored groups to what the loss needs of every response: its target δ = η (reward − baseline)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sppo_megatron.config import ObjectiveConfig
from sppo_megatron.objective import (
    group_baseline,
    length_reward,
    preference_from_scores,
    regression_target,
    resolve_eta,
    win_rates,
)
from sppo_megatron.types import Group


@dataclass(slots=True, eq=False)
class Targets:
    """One entry per response, groups one after the other, in their order. All on the CPU, B responses.

    rewards: float32 [B], as scored; where a response has no scalar reward, its win rate.
    win_rates: float32 [B], or None unless objective.reward=win_rate.
    values: float32 [B], what the baseline is taken from and subtracted of: rewards or win rates, plus the weighted
        length reward.
    baseline: float32 [B]. target: float32 [B], δ = η (values − baseline) in nats, clipped to ±target_clip.
    group_ids: int64 [B], the group's place in the list. lengths: int64 [B], tokens.
    correct: bool [B], or None unless every response has it.
    """

    rewards: Tensor
    win_rates: Tensor | None
    values: Tensor
    baseline: Tensor
    target: Tensor
    group_ids: Tensor
    lengths: Tensor
    correct: Tensor | None


def build_targets(groups: list[Group], objective: ObjectiveConfig) -> Targets:
    """Computed in float64 and rounded once. All responses of a prompt must be here: baselines are per group.

    Raises ValueError naming the group: no responses, a reward that is missing, neither preference nor rewards for a win
    rate, a preference that isn't one; or where a length reward is wanted and correctness isn't defined.
    """
    if objective.reward not in ("reward", "win_rate"):
        raise ValueError(f"objective.reward={objective.reward!r} is not known; choose reward or win_rate")
    eta = resolve_eta(objective.eta, objective.tau)
    responses = [response for group in groups for response in group.responses]
    group_ids = torch.tensor([place for place, group in enumerate(groups) for _ in group.responses], dtype=torch.int64)
    lengths = torch.tensor([len(response.token_ids) for response in responses], dtype=torch.int64)
    correct = None
    if all(response.correct is not None for response in responses):
        correct = torch.tensor([bool(response.correct) for response in responses], dtype=torch.bool)

    use_win_rates = objective.reward == "win_rate"
    rates = _win_rates(groups, objective.win_rate_estimator) if use_win_rates else None
    rewards = _rewards(groups, rates)
    values = rewards if rates is None else rates
    if objective.length_reward_weight:
        if correct is None:
            raise ValueError(
                "objective.length_reward_weight needs to know which responses are correct, and this reward doesn't "
                "say; let the reward function return (reward, correct), or set the weight to 0"
            )
        values = values + objective.length_reward_weight * length_reward(lengths.double(), correct, group_ids)
    baseline = group_baseline(values, group_ids, objective.baseline, tau=1.0 / eta)
    target = regression_target(values, baseline, eta, clip=objective.target_clip)
    return Targets(
        rewards=rewards.float(),
        win_rates=None if rates is None else rates.float(),
        values=values.float(),
        baseline=baseline.float(),
        target=target.float(),
        group_ids=group_ids,
        lengths=lengths,
        correct=correct,
    )


def _rewards(groups: list[Group], rates: Tensor | None) -> Tensor:
    """float64 [B]. Raises where a response has neither a reward nor a win rate."""
    rewards: list[float] = []
    for place, group in enumerate(groups):
        if not group.responses:
            raise ValueError(f"{_name(place, group)} has no responses")
        for number, response in enumerate(group.responses):
            if response.reward is not None:
                rewards.append(response.reward)
            elif rates is not None:
                rewards.append(float(rates[len(rewards)]))
            else:
                raise ValueError(f"{_name(place, group)}: response {number} has no reward; score the groups first")
    return torch.tensor(rewards, dtype=torch.float64)


def _win_rates(groups: list[Group], estimator: str) -> Tensor:
    """float64 [B]. Group by group, since K may differ."""
    rates = []
    for place, group in enumerate(groups):
        try:
            rates.append(win_rates(_preference(group)[None], estimator)[0])
        except ValueError as error:
            raise ValueError(f"{_name(place, group)}: {error}") from None
    return torch.cat(rates) if rates else torch.zeros(0, dtype=torch.float64)


def _preference(group: Group) -> Tensor:
    """float64 [K, K]: the judge's matrix, or Bradley–Terry on the rewards."""
    k = len(group.responses)
    if group.preference is not None:
        preference = torch.as_tensor(group.preference, dtype=torch.float64)
        if preference.shape != (k, k):
            raise ValueError(f"preference is {list(preference.shape)} for {k} responses")
        return preference
    scores = [response.reward for response in group.responses if response.reward is not None]
    if len(scores) < k:
        raise ValueError("objective.reward=win_rate needs a preference matrix, or a reward for every response")
    return preference_from_scores(torch.tensor(scores, dtype=torch.float64))


def _name(place: int, group: Group) -> str:
    return f"group {place} (prompt {group.prompt.index})"
