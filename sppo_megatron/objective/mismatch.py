"""How far the rollout engine's log-probs are from the trainer's for the very same tokens and weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sppo_megatron.objective.checks import check_same_shape
from sppo_megatron.objective.diagnostics import K3_BOUND

_BLOCK = 1 << 15  # tokens whose float64 differences stay in a core's cache


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
    old_log_probs: Tensor,
    rollout_log_probs: Tensor,
    lengths: Sequence[int],
    token_bound: float,
    mask: Tensor | None = None,
) -> Mismatch:
    """old_log_probs, rollout_log_probs: [N] nats, responses one after the other, of `lengths` tokens each.

    mask: bool [N], the tokens that count; None: all of them.
    Works on a few responses at a time, in float64, so that nothing of the size of the whole is made.
    Raises ValueError on shapes that differ and on lengths that don't add up to N.
    """
    check_same_shape("rollout_log_probs", rollout_log_probs, "old_log_probs", old_log_probs)
    if sum(lengths) != len(old_log_probs):
        raise ValueError(f"lengths add up to {sum(lengths)} tokens, and there are {len(old_log_probs)} log-probs")
    old, rollout = old_log_probs.detach(), rollout_log_probs.detach()
    total, absolute = torch.zeros(2, len(lengths), dtype=torch.float64)
    counts = torch.tensor(lengths, dtype=torch.int64)
    largest = excess = 0.0
    over = first = 0
    for responses in _blocks(lengths):
        sizes = torch.tensor(lengths[responses], dtype=torch.int64)
        tokens = slice(first, first := first + int(sizes.sum()))
        difference = old[tokens].double() - rollout[tokens]
        if mask is not None:
            difference.masked_fill_(~mask[tokens], 0)
            counts[responses] = torch.segment_reduce(mask[tokens].double(), "sum", lengths=sizes).long()
        total[responses] = torch.segment_reduce(difference, "sum", lengths=sizes)
        excess += float(difference.clamp(max=K3_BOUND).expm1().sum())
        absolute[responses] = torch.segment_reduce(difference.abs_(), "sum", lengths=sizes)
        largest = max(largest, float(difference.max())) if len(difference) else largest
        over += int((difference > token_bound).sum())
    n = max(1, int(counts.sum()))
    return Mismatch(
        mean=float(absolute.sum() / n),
        max=largest,
        k3=(excess - float(total.sum())) / n,
        share_over=over / n,
        sequence_sum=total.abs(),
        sequence_mean=absolute / counts.clamp(min=1),
    )


def _blocks(lengths: Sequence[int]) -> Iterator[slice]:
    """Neighbouring responses of about _BLOCK tokens together."""
    first = tokens = 0
    for place, length in enumerate(lengths):
        tokens += length
        if tokens >= _BLOCK:
            yield slice(first, place + 1)
            first, tokens = place + 1, 0
    if first < len(lengths):
        yield slice(first, len(lengths))
