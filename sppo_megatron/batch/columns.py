"""The columns of a training batch: float64 [N] each, one entry for every sequence, computed once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sppo_megatron.batch.gate import Rollouts
from sppo_megatron.batch.sequences import Sequences, difference
from sppo_megatron.batch.targets import Targets
from sppo_megatron.batch.training_batch import winner_preferences
from sppo_megatron.errors import ConfigError
from sppo_megatron.objective import truncated_importance_weight
from sppo_megatron.objective.base import Objective, Units
from sppo_megatron.types import Group

# What human responses, behind the sampled ones, have; nothing else than 0 in other columns
_HUMAN = {"weight": 1.0, "win_rate": 0.5, "preference": 0.5}


def response_columns(
    targets: Targets,
    groups: Sequence[Group],
    units: np.ndarray,
    sequences: Sequences,
    objective: Objective,
    weights: Tensor,
) -> dict[str, np.ndarray]:
    """What is known of the responses themselves, and what the objective makes of it.

    units: before the gate. weights: float64 [B], of the sampled responses' losses.
    """
    truncated = [response.finish_reason == "length" for group in groups for response in group.responses]
    half = np.full(len(truncated), 0.5)
    of_pairs = objective.units is Units.BEST_WORST
    sampled = {
        "weight": weights.numpy(),
        "reward": targets.rewards.numpy(),
        "win_rate": half if targets.win_rates is None else targets.win_rates.numpy(),
        "preference": winner_preferences(units, groups, targets) if of_pairs else half,
        "truncated": np.array(truncated, np.float64),
        **{name: column.numpy() for name, column in targets.columns.items()},
    }
    human = len(sequences) - len(truncated)
    return {name: np.append(column, np.full(human, _HUMAN.get(name, 0.0))) for name, column in sampled.items()}


def log_ratio_columns(
    sequences: Sequences, old_log_probs: np.ndarray, rollouts: Rollouts, ref_log_probs: np.ndarray | None
) -> dict[str, np.ndarray]:
    """Sums of log π_t − log π_ref and of log π_t − log π_rollout in nats; 0 if the other one isn't known."""
    of_rollout = sequences.sums_of(difference, old_log_probs, rollouts.log_probs)
    no_reference = np.zeros(len(sequences))
    return {
        "ref_log_ratio": no_reference
        if ref_log_probs is None
        else sequences.sums_of(difference, old_log_probs, ref_log_probs),
        "rollout_log_ratio": np.where(rollouts.has_log_probs, of_rollout, 0.0),
    }


def importance_column(
    targets: Targets,
    sequences: Sequences,
    old_log_probs: np.ndarray,
    rollouts: Rollouts,
    objective: Objective,
    to_weight: np.ndarray,
) -> np.ndarray:
    """min(π_t/π_rollout, cap): of all sampled responses if the objective has it, else of those that the gate named.

    1 for all others, for human responses and for empty ones. to_weight: bool [N].
    Raises ConfigError if the objective has it and a sampled response has no rollout_log_probs.
    """
    level, chosen = objective.importance_weight, to_weight
    if level is None and not to_weight.any():
        return np.ones(len(sequences))
    if level is not None:
        chosen = np.arange(len(sequences)) < len(targets.values)
        if missing := np.flatnonzero(chosen & ~rollouts.has_log_probs).tolist():
            raise ConfigError(
                f"response {missing[0]} has no rollout_log_probs, which "
                f"objective.importance_weight={level} needs: set it to null"
            )

    def truncated(log_weights: np.ndarray) -> np.ndarray:
        return truncated_importance_weight(torch.from_numpy(log_weights), objective.importance_cap).numpy()

    log_probs = (old_log_probs, rollouts.log_probs)
    if level == "token":
        of_tokens = sequences.sums_of(lambda old, rollout: truncated(difference(old, rollout)), *log_probs)
        weights = of_tokens / np.maximum(1, sequences.lengths)
    else:
        weights = truncated(sequences.sums_of(difference, *log_probs))
    return np.where(chosen & (sequences.lengths > 0), weights, 1.0)


def mean_over_sampled(name: str, column: np.ndarray, targets: Targets) -> dict[str, float]:
    """The mean over sampled responses that have a token; {} without one."""
    counted = column[: len(targets.values)][targets.lengths.numpy() > 0]
    return {name: float(counted.mean())} if len(counted) else {}
