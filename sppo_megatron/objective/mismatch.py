"""How far the rollout engine's log-probs are from the trainer's for the very same tokens and weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
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
    old, rollout = (_on_host(values) for values in (old_log_probs, rollout_log_probs))
    counting = None if mask is None else mask.cpu().numpy()
    counts = np.array(lengths, np.int64)
    bounds = np.cumsum([0, *lengths])
    total, absolute = np.zeros((2, len(lengths)))
    largest = excess = 0.0
    over = 0
    blocks = [*_blocks(lengths)]
    longest = max((int(bounds[block.stop] - bounds[block.start]) for block in blocks), default=0)
    scratch = np.empty((2, longest))  # used again: new memory for each block would cost more than what is done in it
    for responses in blocks:
        first, end = bounds[responses.start], bounds[responses.stop]
        starts, sizes = bounds[responses] - first, np.diff(bounds[responses.start : responses.stop + 1])
        difference, other = scratch[:, : end - first]
        np.subtract(old[first:end], rollout[first:end], out=difference, dtype=np.float64)
        if counting is not None:
            difference[~counting[first:end]] = 0
            counts[responses] = _sums(counting[first:end].astype(np.int64), starts, sizes)
        total[responses] = _sums(difference, starts, sizes)
        excess += float(np.expm1(np.minimum(difference, K3_BOUND, out=other), out=other).sum())
        np.abs(difference, out=other)
        absolute[responses] = _sums(other, starts, sizes)
        largest = max(largest, float(other.max(initial=0.0)))
        over += int(np.count_nonzero(other > token_bound))
    n = max(1, int(counts.sum()))
    return Mismatch(
        mean=float(absolute.sum() / n),
        max=largest,
        k3=(excess - float(total.sum())) / n,
        share_over=over / n,
        sequence_sum=torch.from_numpy(np.abs(total)),
        sequence_mean=torch.from_numpy(absolute / np.maximum(1, counts)),
    )


def _on_host(values: Tensor) -> np.ndarray:
    values = values.detach().cpu()
    return (values.float() if values.dtype.itemsize < 4 else values).numpy()  # numpy has no bfloat16


def _sums(values: np.ndarray, starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Of neighbouring stretches of values; 0 of an empty one, which `reduceat` would take for its first element."""
    sums = np.zeros(len(sizes), values.dtype)
    is_filled = sizes > 0
    if is_filled.any():
        sums[is_filled] = np.add.reduceat(values, starts[is_filled])
    return sums


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
