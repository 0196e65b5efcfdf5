"""Answers against those of another policy, one against one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sppo_megatron.rewards.scorer import Scorer, score_over_ranks
from sppo_megatron.types import Group


def rates_against(
    scorer: Scorer, groups: Sequence[Group], opponents: Sequence[Group]
) -> tuple[np.ndarray, list[str | None]]:
    """P(answer beats the opponent's answer of the same place) [prompts, samples], and for each answer in order why
    its comparison failed, None if it did not; such a one is a tie.

    With a scorer of preferences it is asked about the two answers; else the higher reward wins and equal ones tie, of
    groups and opponents that are scored. Both have the same prompts, and the same number of answers to each.
    Collective inside of a process group. Raises ScoringError and Interrupted as `score_over_ranks`.
    """
    if not scorer.gives_preferences:
        count = sum(len(group.responses) for group in groups)
        return 0.5 + 0.5 * np.sign(_rewards(groups) - _rewards(opponents)), [None] * count
    duels = [
        Group(group.prompt, [mine, other])
        for group, opponent in zip(groups, opponents, strict=True)
        for mine, other in zip(group.responses, opponent.responses, strict=True)
    ]
    duels = score_over_ranks(scorer, duels)
    wins = [0.5 if duel.preference is None else float(duel.preference[0, 1]) for duel in duels]
    return np.array(wins).reshape(len(groups), -1), [duel.responses[0].error for duel in duels]


def with_win_rates(groups: Sequence[Group], rates: np.ndarray | None, errors: Sequence[str | None]) -> list[Group]:
    """New groups whose rewards are the win rates [prompts, samples], 0.5 without any. errors: one for each answer."""
    of_answers = iter(errors)
    return [
        Group(
            group.prompt,
            [
                replace(
                    response,
                    reward=0.5 if rates is None else float(rates[place, number]),
                    error=next(of_answers),
                )
                for number, response in enumerate(group.responses)
            ],
        )
        for place, group in enumerate(groups)
    ]


def have_same_prompts(groups: Sequence[Group], others: Sequence[Group]) -> bool:
    """The same prompts, by their tokens, in the same order."""
    return [group.prompt.token_ids.tolist() for group in groups] == [o.prompt.token_ids.tolist() for o in others]


def have_same_counts(groups: Sequence[Group], others: Sequence[Group]) -> bool:
    """The same number of answers to each prompt."""
    return [len(group.responses) for group in groups] == [len(other.responses) for other in others]


def _rewards(groups: Sequence[Group]) -> np.ndarray:
    return np.array([[response.reward for response in group.responses] for group in groups], dtype=np.float64)
