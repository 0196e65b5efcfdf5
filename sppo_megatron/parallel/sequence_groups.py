"""Which sequences of a micro-batch are worked on together, under a budget of bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


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
    sequence_ids: Tensor, groups: Sequence[tuple[int, int]], num_sequences: int
) -> tuple[Tensor | None, list[tuple[int, int]]]:
    """How to bring the tokens [N] of each group together, and where they are then.

    Returns (permutation [N], None if none is needed; bounds [start, end) of each group's tokens). Tokens of one
    sequence keep their order. More than one group costs a device synchronisation.
    """
    if len(groups) == 1:
        return None, [(0, sequence_ids.numel())]
    order = torch.argsort(sequence_ids, stable=True)
    counts = torch.bincount(sequence_ids, minlength=num_sequences)
    ends = [0, *counts.cumsum(0).tolist()]
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
