"""One iteration as the policy trains on it: frozen columns, and mini-batches of units that are indices into them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch

from sppo_megatron.batch.sequences import Sequences
from sppo_megatron.batch.targets import Targets
from sppo_megatron.objective.base import Units
from sppo_megatron.types import Group

NOTHING = -1  # fills the row of a unit that has fewer sequences than the widest one


@dataclass(frozen=True, eq=False)
class TrainingBatch:
    """N sequences of T response tokens.

    columns: float32 [N] each, by name, what the loss and the diagnostics need of every sequence: target (δ, nats),
    weight (multiplies the loss), reward, win_rate, preference, truncated, importance_weight, ref_log_ratio and
    rollout_log_ratio (sums of log π_t − log π_ref and log π_t − log π_rollout, nats), and what the objective adds.
    old_log_probs, ref_log_probs, rollout_log_probs: float32 [T] in nats, of π_t, π_ref and the engine; 0 for masked-out
    tokens, None if they are not known. has_rollout: bool [N], whether the engine recorded its log-probs.
    minibatches: in order, each int64 [units, sequences of a unit] of places in the N, filled up with NOTHING.
    metrics: what is known of the whole iteration.
    """

    sequences: Sequences
    old_log_probs: np.ndarray
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    rollout_log_probs: np.ndarray | None = None
    has_rollout: np.ndarray | None = None
    ref_log_probs: np.ndarray | None = None
    minibatches: tuple[np.ndarray, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)

    def num_tokens(self, units: np.ndarray) -> int:
        """Tokens fed to the model for these units."""
        return int(self.sequences.num_tokens[members(units)].sum())


def members(units: np.ndarray) -> np.ndarray:
    """int64 [S]: the sequences of units [U, W], unit by unit."""
    return units[units != NOTHING]


def single_units(count: int) -> np.ndarray:
    """int64 [count, 1]: a unit for each sequence."""
    return np.arange(count, dtype=np.int64)[:, None]


def regression_columns(target: np.ndarray) -> dict[str, np.ndarray]:
    """Columns of responses that are known by their target δ [N] alone, such as random ones."""
    of_one = dict.fromkeys(("weight", "importance_weight"), 1.0)
    values = of_one | dict.fromkeys(("win_rate", "preference"), 0.5)
    values |= dict.fromkeys(("reward", "truncated", "ref_log_ratio", "rollout_log_ratio"), 0.0)
    columns = {name: np.full(len(target), value, np.float32) for name, value in values.items()}
    return columns | {"target": target.astype(np.float32)}


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
    units: np.ndarray,
    minibatch_size: int | None,
    epochs: int,
    *,
    shuffle: bool,
    seed: int,
    iteration: int,
    prompt_of: np.ndarray | None = None,
) -> tuple[np.ndarray, ...]:
    """The mini-batches of one iteration, in order. minibatch_size counts sequences; an epoch's last may be smaller.

    prompt_of: int64 [N], if the units of a prompt are to stay together: prompts are then shuffled, and units in each.
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
            random = np.random.default_rng([seed, iteration, epoch])
            random.shuffle(order)
            if prompt_of is not None:
                prompts = prompt_of[units[order, 0]]
                order = order[np.argsort(random.permutation(prompts.max() + 1)[prompts], kind="stable")]
        batches += [units[order[start : start + size]] for start in range(0, len(units), size)]
    return tuple(batches)


def steps_per_iteration(num_sequences: int, minibatch_size: int | None, epochs: int) -> int:
    """Optimizer steps of an iteration with this many responses (or sequences of pairs)."""
    size = minibatch_size or num_sequences
    return epochs * -(-num_sequences // size)
