"""One iteration as the policy trains on it: frozen columns, and mini-batches that are indices into them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from sppo_megatron.batch.sequences import Sequences

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
