"""The gate between rollouts and training: what was sampled must be what is trained."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import numpy as np
import torch

from sppo_megatron.batch.sequences import Sequences
from sppo_megatron.config import MismatchConfig
from sppo_megatron.errors import TrainingError
from sppo_megatron.objective import Mismatch, rollout_mismatch

logger = logging.getLogger(__name__)

UNKNOWN = -1  # the policy version of a response that doesn't say


@dataclass(frozen=True, eq=False)
class Rollouts:
    """What the engine said of its N responses, those of `Sequences` in their order.

    log_probs: float32 [T] nats, 0 if it recorded none and for masked-out tokens. has_log_probs: bool [N].
    versions: int64 [N], optimizer steps of the weights that each was sampled from, or UNKNOWN.
    """

    log_probs: np.ndarray
    has_log_probs: np.ndarray
    versions: np.ndarray


@dataclass(frozen=True, eq=False)
class Verdict:
    """dropped: bool [N], not to be trained on. to_weight: bool [N], to be corrected by sequence importance weights."""

    dropped: np.ndarray
    to_weight: np.ndarray
    metrics: dict[str, float] = field(default_factory=dict)


def check_mismatch(
    sequences: Sequences,
    old_log_probs: np.ndarray,
    rollouts: Rollouts,
    config: MismatchConfig,
    *,
    iteration: int,
    version: int | None = None,
) -> Verdict:
    """Compares log π_t with the engine's log-probs before an iteration's first step, as `rollout.mismatch` says.

    version: of the weights that gave old_log_probs. Responses of it, or of an unknown one, are compared and acted upon.
    Those of another differ for a good reason: they are counted as mismatch_other_version and left alone; if there are
    no others, the figures are theirs. Responses without the engine's log-probs are not looked at.
    Raises TrainingError if a bound is exceeded and the action is stop.
    """
    nothing = np.zeros(len(sequences), np.bool_)
    is_other = rollouts.has_log_probs & (rollouts.versions != UNKNOWN) & (rollouts.versions != version)
    compared = rollouts.has_log_probs & ~is_other
    seen = compared if compared.any() else is_other
    if not seen.any():
        return Verdict(nothing, nothing)
    mismatch = _mismatch_of(sequences, old_log_probs, rollouts, seen, config.token_bound)
    metrics = _metrics(mismatch) | {"mismatch_other_version": float(is_other.sum())}
    excess = _excess(mismatch, config) if compared.any() else None
    dropped = nothing
    if compared.any() and config.action == "drop":
        over = (mismatch.sequence_mean > config.mean_bound) | (mismatch.sequence_sum > config.sequence_bound)
        dropped = nothing.copy()
        dropped[compared] = over.numpy()
    if excess is not None:
        message = f"iteration {iteration}: the rollout engine's log-probs are not the trainer's: {excess}"
        if config.action == "stop":
            raise TrainingError(
                f"{message}. Nothing was trained on them. Look at rollout.verify=true, the engine's precision and its "
                "sampling settings; go on with rollout.mismatch.action=importance_weight or a higher bound"
            )
        logger.warning("%s", message)
    if dropped.any():
        logger.warning(
            "iteration %d: %d of %d responses dropped by rollout.mismatch", iteration, dropped.sum(), compared.sum()
        )
    metrics |= {"mismatch_exceeded": float(excess is not None), "mismatch_dropped": float(dropped.sum())}
    weigh = excess is not None and config.action == "importance_weight"
    return Verdict(dropped, compared if weigh else nothing, metrics)


def _mismatch_of(
    sequences: Sequences, old_log_probs: np.ndarray, rollouts: Rollouts, seen: np.ndarray, token_bound: float
) -> Mismatch:
    sizes = np.diff(sequences.offsets)
    tokens = slice(None) if seen.all() else np.repeat(seen, sizes)
    return rollout_mismatch(
        torch.from_numpy(old_log_probs[tokens]),
        torch.from_numpy(rollouts.log_probs[tokens]),
        sizes[seen].tolist(),
        token_bound,
        None if sequences.loss_mask is None else torch.from_numpy(sequences.loss_mask[tokens]),
    )


def _excess(mismatch: Mismatch, c: MismatchConfig) -> str | None:
    found = []
    if mismatch.mean > c.mean_bound:
        found.append(f"mean |difference| {mismatch.mean:.3g} nats per token (mean_bound {c.mean_bound:g})")
    if mismatch.share_over > c.share_bound:
        found.append(
            f"{mismatch.share_over:.1%} of tokens differ by more than {c.token_bound:g} nats "
            f"(share_bound {c.share_bound:.1%})"
        )
    return " and ".join(found) or None


def _metrics(mismatch: Mismatch) -> dict[str, float]:
    return {
        "mismatch_mean": mismatch.mean,
        "mismatch_max": mismatch.max,
        "mismatch_k3": mismatch.k3,
        "mismatch_share_over": mismatch.share_over,
        "mismatch_sequence_mean": float(mismatch.sequence_sum.mean()),
        "mismatch_sequence_max": float(mismatch.sequence_sum.max()),
    }
