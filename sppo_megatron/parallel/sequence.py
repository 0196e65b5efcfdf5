"""Sequence sums over context-parallel ranks, and the layout that says which tokens a rank holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def sequence_sum(
    values: Tensor, sequence_ids: Tensor, num_sequences: int, *, cp_group: dist.ProcessGroup | None = None
) -> Tensor:
    """Sums per-token values into their sequences, over all context-parallel ranks: what any square must come after.

    values: [n] floating, this rank's tokens. sequence_ids: integers [n] in [0, num_sequences). n may differ by rank.
    Returns [num_sequences] in float32, the same on every rank of `cp_group`; a sequence without tokens gets 0. Sums
    are taken in float64 and rounded once, so neither the order of tokens nor the split over ranks shows.

    Gradient: the forward pass is an all-reduce, the backward pass is the identity. Every context-parallel rank
    computes the same loss L from the replicated sums, and takes it once; its backward pass then gives the gradient of
    its own tokens, dL/dvalues[i] = dL/ds[sequence_ids[i]]. The gradients of parameters are to be *summed* over
    context-parallel ranks, by the data-parallel reduction.

    Raises ValueError on mismatched shapes, ids that are not integers, or (checked on CPU) outside the range.
    """
    if values.dim() != 1 or values.shape != sequence_ids.shape or not values.is_floating_point():
        raise ValueError(
            f"values {list(values.shape)} ({values.dtype}) and sequence_ids {list(sequence_ids.shape)} must be [n], "
            "values floating-point: flatten them to one entry per token"
        )
    if sequence_ids.dtype == torch.bool or sequence_ids.is_floating_point():
        raise ValueError(f"sequence_ids must have an integer dtype, got {sequence_ids.dtype}: pass sequence_ids.long()")
    if sequence_ids.device.type == "cpu" and sequence_ids.numel() > 0:
        low, high = int(sequence_ids.min()), int(sequence_ids.max())
        if low < 0 or high >= num_sequences:
            raise ValueError(f"sequence_ids must be in [0, num_sequences={num_sequences}), got {low} to {high}")
    sums = torch.zeros(num_sequences, dtype=torch.float64, device=values.device)
    sums = sums.index_add(0, sequence_ids.long(), values.double())
    return _SumOverGroup.apply(sums, cp_group).float()


class _SumOverGroup(torch.autograd.Function):
    """Forward: all-reduce. Backward: identity."""

    @staticmethod
    def forward(ctx: Any, partial: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        total = partial.clone()
        if group is not None and total.numel() > 0:
            dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def zigzag_indices(lengths: Sequence[int], cp_size: int, cp_rank: int) -> Tensor:
    """The tokens that a context-parallel rank holds, in Megatron's and Transformer Engine's load-balanced layout.

    Each segment is cut into 2 * cp_size equal chunks; rank r holds chunk r and then chunk 2 * cp_size - 1 - r of every
    segment, so that causal attention costs every rank the same.

    lengths: tokens of each segment, divisible by 2 * cp_size if cp_size > 1 (pad the segments). Returns int64
    positions into the concatenation of the segments; with cp_size = 1 all of them, in order.
    Raises ValueError on a rank outside [0, cp_size) and on a length that does not divide.
    """
    if cp_size < 1 or not 0 <= cp_rank < cp_size:
        raise ValueError(f"cp_rank must be in [0, cp_size) and cp_size at least 1, got rank {cp_rank} of {cp_size}")
    if cp_size == 1:
        return torch.arange(sum(lengths))
    pieces, start = [torch.empty(0, dtype=torch.long)], 0
    for number, length in enumerate(lengths):
        chunk, rest = divmod(length, 2 * cp_size)
        if rest or length < 0:
            raise ValueError(
                f"lengths[{number}] is {length}, which 2 * cp_size = {2 * cp_size} does not divide: pad the segment"
            )
        first, last = start + cp_rank * chunk, start + (2 * cp_size - 1 - cp_rank) * chunk
        pieces += [torch.arange(first, first + chunk), torch.arange(last, last + chunk)]
        start += length
    return torch.cat(pieces)
