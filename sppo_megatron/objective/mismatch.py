"""How far the rollout engine's log-probs are from the trainer's for the very same tokens and weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sppo_megatron.objective.checks import check_same_shape
from sppo_megatron.objective.diagnostics import K3_BOUND


@dataclass(frozen=True)
class Mismatch:
    """d = log π_t − log π_rollout of each token, in nats.

    mean, max: of |d| over all tokens. k3: mean of e^d − 1 − d, an estimate of KL(π_rollout‖π_t) per token.
    share_over: share of tokens whose |d| exceeds the bound. sequence_sum, sequence_mean: float64 [B], of each response
    |Σ d| and mean |d|; 0 of an empty one.
    """

    mean: float
    max: float
    k3: float
    share_over: float
    sequence_sum: Tensor
    sequence_mean: Tensor


def rollout_mismatch(
    old_log_probs: Tensor, rollout_log_probs: Tensor, lengths: Sequence[int], token_bound: float
) -> Mismatch:
    """old_log_probs, rollout_log_probs: [N] nats, responses one after the other, of `lengths` tokens each.

    Raises ValueError on shapes that differ and on lengths that don't add up to N.
    """
    check_same_shape("rollout_log_probs", rollout_log_probs, "old_log_probs", old_log_probs)
    if sum(lengths) != len(old_log_probs):
        raise ValueError(f"lengths add up to {sum(lengths)} tokens, and there are {len(old_log_probs)} log-probs")
    difference = old_log_probs.detach().double() - rollout_log_probs.detach().double()
    counts = torch.tensor(list(lengths), dtype=torch.int64)
    sequence = torch.repeat_interleave(torch.arange(len(counts)), counts)
    empty = torch.zeros(len(counts), dtype=torch.float64)
    total = empty.index_add(0, sequence, difference)
    absolute = empty.index_add(0, sequence, difference.abs())
    n = max(1, len(difference))
    return Mismatch(
        mean=float(difference.abs().sum() / n),
        max=float(difference.abs().max()) if len(difference) else 0.0,
        k3=float((difference.clamp(max=K3_BOUND).expm1() - difference).sum() / n),
        share_over=float((difference.abs() > token_bound).sum() / n),
        sequence_sum=total.abs(),
        sequence_mean=absolute / counts.clamp(min=1),
    )
