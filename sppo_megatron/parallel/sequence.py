"""Tokens and their sequences: sums over context-parallel ranks, who holds what, and what is worked on together."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

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


class SequenceBatch(NamedTuple):
    """Four tensors of this rank's tokens [N, ...] and two of whole sequences [S]; sequence_ids count from 0."""

    hidden: Tensor
    targets: Tensor
    old_log_probs: Tensor
    sequence_ids: Tensor
    regression_target: Tensor
    coefficient: Tensor

    def in_order(self, order: Tensor) -> SequenceBatch:
        hidden, targets, old_log_probs, sequence_ids = (tensor[order] for tensor in self[:4])
        return SequenceBatch(hidden, targets, old_log_probs, sequence_ids, self.regression_target, self.coefficient)

    def part(self, tokens: slice, sequences: slice) -> SequenceBatch:
        hidden, targets, old_log_probs, sequence_ids = (tensor[tokens] for tensor in self[:4])
        regression_target, coefficient = self.regression_target[sequences], self.coefficient[sequences]
        ids = sequence_ids - sequences.start
        return SequenceBatch(hidden, targets, old_log_probs, ids, regression_target, coefficient)


def cut_groups(lengths: Sequence[int], bytes_per_token: int, budget: int) -> list[tuple[int, int]]:
    """Bounds [first, end) of groups of consecutive sequences that need at most `budget` bytes together.

    A sequence that needs more alone is a group of its own. Covers all sequences in order; at least one group.
    Depends on its arguments alone: ranks that share them agree.
    """
    groups, first, used = [], 0, 0
    for number, length in enumerate(lengths):
        needed = length * bytes_per_token
        if number > first and used + needed > budget:
            groups.append((first, number))
            first, used = number, 0
        used += needed
    return [*groups, (first, len(lengths))]


def order_by_sequence(
    sequence_ids: Tensor, groups: Sequence[tuple[int, int]], lengths: Sequence[int]
) -> tuple[Tensor | None, list[tuple[int, int]]]:
    """How to bring the tokens [N] of each group together, and where they are then.

    lengths: at least the tokens of each sequence here. Returns (permutation [N], None if none is needed; bounds
    [start, end) of each group's tokens). Tokens of one sequence keep their order. More than one group costs a device
    synchronisation unless lengths are the tokens here.
    """
    if len(groups) == 1:
        return None, [(0, sequence_ids.numel())]
    order = torch.argsort(sequence_ids, stable=True)
    if sum(lengths) == sequence_ids.numel():  # none can be shorter here, then
        counts: Sequence[int] = lengths
    else:
        counts = torch.bincount(sequence_ids, minlength=len(lengths)).tolist()
    ends = [0, *itertools.accumulate(counts)]
    return order, [(ends[first], ends[end]) for first, end in groups]


def check_sequences(sequence_ids: Tensor, lengths: Sequence[int]) -> None:
    """Raises on ids that are not integers or, on CPU, if the tokens [N] are not those of sequences so long."""
    if sequence_ids.dtype == torch.bool or sequence_ids.is_floating_point():
        raise ValueError(f"sequence_ids must have an integer dtype, got {sequence_ids.dtype}: pass sequence_ids.long()")
    if sequence_ids.device.type != "cpu" or sequence_ids.numel() == 0:
        return
    low, high = int(sequence_ids.min()), int(sequence_ids.max())
    if low < 0 or high >= len(lengths):
        raise ValueError(f"sequence_ids must be in [0, {len(lengths)}), one for each of lengths, got {low} to {high}")
    counts = torch.bincount(sequence_ids, minlength=len(lengths)).tolist()
    for number, (count, length) in enumerate(zip(counts, lengths, strict=True)):
        if count > length:
            raise ValueError(
                f"lengths[{number}] is {length}, but this rank alone holds {count} tokens of that sequence: "
                "lengths are the tokens over all context-parallel ranks"
            )
