"""What a mini-batch is made of, single responses, pairs or whole groups, and the mini-batches themselves."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch

from sppo_megatron.batch.targets import Targets
from sppo_megatron.batch.training_batch import NOTHING, single_units
from sppo_megatron.objective.base import Units
from sppo_megatron.types import Group


def build_units(kind: Units, groups: Sequence[Group], targets: Targets) -> np.ndarray:
    """int64 [U, W]: the places of each unit's sequences, in the groups' order.

    Pairs are (winner, loser): the best and the worst of each group by win rate, or by reward if there are no win rates,
    and none of a group without a spread; or SPIN's, whose human responses lie behind the sampled ones.
    """
    if kind is Units.SINGLE:
        return single_units(len(targets.values))
    bounds = np.cumsum([0, *(len(group.responses) for group in groups)])
    places = [np.arange(first, end) for first, end in pairwise(bounds.tolist())]
    if kind is Units.GROUP:
        units = np.full((len(groups), max(map(len, places), default=1)), NOTHING, np.int64)
        for unit, own in zip(units, places, strict=True):
            unit[: len(own)] = own
        return units
    if kind is Units.HUMAN_VS_SAMPLE:
        human = np.repeat(bounds[-1] + np.arange(len(groups)), np.diff(bounds))
        return np.stack([human, np.arange(bounds[-1])], axis=1)
    values = targets.values.float().numpy()
    pairs = [(own[values[own].argmax()], own[values[own].argmin()]) for own in places]
    spread = [pair for pair in pairs if values[pair[0]] > values[pair[1]]]
    return np.array(spread, np.int64).reshape(-1, 2)


def winner_preferences(units: np.ndarray, groups: Sequence[Group], targets: Targets) -> np.ndarray:
    """float64 [B]: P(winner beats loser) at the winners of best and worst pairs, by the judge's matrix or Bradley–Terry
    on the rewards; ½ elsewhere."""
    preferences = np.full(len(targets.values), 0.5)
    group_ids = targets.group_ids.numpy()
    first = np.cumsum([0, *(len(group.responses) for group in groups)])
    for winner, loser in units.tolist():
        place = group_ids[winner]
        matrix = groups[place].preference
        if matrix is not None:
            preferences[winner] = matrix[winner - first[place]][loser - first[place]]
        else:
            preferences[winner] = torch.sigmoid(targets.rewards[winner] - targets.rewards[loser])
    return preferences


def cut_minibatches(
    units: np.ndarray, minibatch_size: int | None, epochs: int, *, shuffle: bool, seed: int, iteration: int
) -> tuple[np.ndarray, ...]:
    """The mini-batches of one iteration, in order. minibatch_size counts sequences; an epoch's last may be smaller.

    A pure function of its arguments, so a resumed run has the same ones.
    """
    if not len(units):
        return ()
    width = units.shape[1]
    size = max(1, (minibatch_size or len(units) * width) // width)
    batches: list[np.ndarray] = []
    for epoch in range(epochs):
        order = np.arange(len(units))
        if shuffle:
            np.random.default_rng([seed, iteration, epoch]).shuffle(order)
        batches += [units[order[start : start + size]] for start in range(0, len(units), size)]
    return tuple(batches)


def steps_per_iteration(num_sequences: int, minibatch_size: int | None, epochs: int) -> int:
    """Optimizer steps of an iteration with this many responses (or sequences of pairs)."""
    size = minibatch_size or num_sequences
    return epochs * -(-num_sequences // size)
