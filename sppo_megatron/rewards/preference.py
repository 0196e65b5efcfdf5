"""From answers about ordered pairs to a group's preference matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from sppo_megatron.objective import win_rates
from sppo_megatron.types import Group

Pair = tuple[int, int]  # places of the first and of the second response in their group


def ordered_pairs(texts: Sequence[str]) -> list[Pair]:
    """Both orders of every two responses that differ. Equal ones are a tie, which needs no answer."""
    places = range(len(texts))
    return [(i, j) for i in places for j in places if texts[i] != texts[j]]


def preference_matrix(num_responses: int, first_wins: Mapping[Pair, float]) -> np.ndarray:
    """P_ij = (p_ij + 1 − p_ji) / 2, float64 [K, K], with p_ij = P(first wins), i shown first and j second.

    A judge's leaning to one place cancels. A pair is ½ unless both of its orders are there; so is the diagonal.
    """
    matrix = np.full((num_responses, num_responses), 0.5)
    for (i, j), p in first_wins.items():
        if i < j and (j, i) in first_wins:
            matrix[i, j] = (p + 1.0 - first_wins[j, i]) / 2.0
            matrix[j, i] = 1.0 - matrix[i, j]
    return matrix


def with_preference(group: Group, first_wins: Mapping[Pair, float], failures: Mapping[Pair, str]) -> Group:
    """The group with its preference; each response's reward is its win rate in the group, itself counted as ½.

    failures: why a pair has no answer. It is an error of both of its responses, and the pair a tie.
    Raises ValueError if an answer is no probability.
    """
    errors: dict[int, str] = {}
    for (i, j), why in failures.items():
        for place in (i, j):
            errors.setdefault(place, f"no preference between responses {i} and {j}: {why}")
    responses = [replace(response, correct=None, error=None) for response in group.responses]
    return with_matrix(Group(group.prompt, responses), preference_matrix(len(responses), first_wins), errors)


def with_matrix(group: Group, preference: np.ndarray, errors: Mapping[int, str]) -> Group:
    """The group with this preference; each response's reward is its win rate. errors: by place, of responses that
    have none yet."""
    rates = win_rates(torch.from_numpy(preference)[None])[0].tolist() if group.responses else []
    responses = [
        replace(response, reward=rate, error=response.error or errors.get(place))
        for place, (response, rate) in enumerate(zip(group.responses, rates, strict=True))
    ]
    return Group(group.prompt, responses, preference)
