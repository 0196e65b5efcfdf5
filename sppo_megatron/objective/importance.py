"""Truncated importance weights between the inference engine's policy and the trainer's π_t.

The two run the same weights with other kernels, precision and support, so the samples are of π_rollout and not quite of
π_t. The weight min(π_old/π_rollout, C) multiplies the whole squared residual and is never differentiated.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sppo_megatron.objective.checks import as_float, check_choice, check_positive, check_same_shape
from sppo_megatron.objective.regression import sequence_log_ratio

LEVELS = ("sequence", "token")


def truncated_importance_weight(log_weight: Tensor, cap: float, *, log_bound: float = 20.0) -> Tensor:
    """min(exp(log_weight), cap), with log_weight first bounded to ±log_bound nats: no overflow, no zero.

    log_weight: any shape, nats. Returns the same shape, fp32 or float64, detached. Raises ValueError on cap or
    log_bound not above 0.
    """
    log_cap = min(math.log(check_positive("cap", cap)), check_positive("log_bound", log_bound))
    return as_float(log_weight.detach()).clamp(min=-log_bound, max=log_cap).exp()


def rollout_importance_weights(
    old_log_probs: Tensor,
    rollout_log_probs: Tensor,
    response_mask: Tensor,
    level: str = "sequence",
    cap: float = 2.0,
    *,
    log_bound: float = 20.0,
    validate: bool = True,
) -> Tensor:
    """w = min(π_old/π_rollout, cap), of whole responses or of single tokens. Detached.

    old_log_probs, rollout_log_probs: [B, T] nats: π_t by the trainer, and by the engine that sampled.
    level: `sequence` returns [B], one ratio of sequence probabilities (1 for an empty response); `token` returns [B,
    T], one truncated ratio a token and 0 at masked places, whose mean over the response is its weight (biased, but its
    variance doesn't grow with length). cap: C > 0. log_bound: see `truncated_importance_weight`.
    Raises ValueError on an unknown level, shapes that differ, cap or log_bound not above 0 and, with validate, on
    non-finite values at valid places.
    """
    check_choice("level", level, LEVELS)
    check_same_shape("rollout_log_probs", rollout_log_probs, "old_log_probs", old_log_probs)
    old_log_probs = old_log_probs.detach()
    # Also the check of every argument, for both levels.
    log_weight, _ = sequence_log_ratio(old_log_probs, rollout_log_probs, response_mask, validate=validate)
    if level == "sequence":
        return truncated_importance_weight(log_weight, cap, log_bound=log_bound)
    mask = response_mask.bool()
    log_weight = torch.where(mask, as_float(old_log_probs), 0) - torch.where(
        mask, as_float(rollout_log_probs.detach()), 0
    )
    return torch.where(mask, truncated_importance_weight(log_weight, cap, log_bound=log_bound), 0)
