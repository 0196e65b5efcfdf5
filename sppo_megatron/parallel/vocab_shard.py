"""Which columns of the vocabulary this rank holds, and the argument checks that both log-prob functions share."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class VocabShard:
    """Columns [start, start + columns) of the true vocabulary; what the rank holds beyond them is padding.

    Padding is excluded by slicing, never by masking: its values are not read, so NaN and inf there do no harm.
    group: the tensor-parallel group, None if there is nothing to communicate.
    """

    start: int
    columns: int
    vocab_size: int
    group: dist.ProcessGroup | None

    @classmethod
    def of(cls, padded_columns: int, vocab_size: int | None, tp_group: dist.ProcessGroup | None) -> VocabShard:
        """The shard of this rank in `tp_group`, where every rank holds `padded_columns` columns in rank order."""
        tp_size = 1 if tp_group is None else dist.get_world_size(tp_group)
        tp_rank = 0 if tp_group is None else dist.get_rank(tp_group)
        padded_size = padded_columns * tp_size
        vocab_size = padded_size if vocab_size is None else vocab_size
        if not 1 <= vocab_size <= padded_size:
            raise ValueError(
                f"vocab_size is {vocab_size}, but {tp_size} shard(s) of {padded_columns} columns hold {padded_size}: "
                "give the true vocabulary size, at least 1 and at most the padded one"
            )
        start = tp_rank * padded_columns
        columns = min(max(vocab_size - start, 0), padded_columns)
        return cls(start, columns, vocab_size, tp_group if tp_size > 1 else None)

    def locate(self, targets: Tensor, first: int, count: int) -> tuple[Tensor, Tensor]:
        """Where `targets` [n] fall in the local columns [first, first + count), count >= 1.

        Returns (index, inside), each [n, 1]: the column within the tile, 0 if the target is outside, and whether
        it is inside. Costs no device synchronisation.
        """
        index = (targets - (self.start + first)).unsqueeze(-1)
        inside = (index >= 0) & (index < count)
        return index.where(inside, 0), inside


def check_targets(targets: Tensor, vocab_size: int) -> None:
    """Raises on targets that are not integers in [0, vocab_size); the range only on CPU, on which looking is free."""
    if targets.dtype == torch.bool or targets.is_floating_point() or targets.is_complex():
        raise ValueError(f"targets must be token ids of an integer dtype, got {targets.dtype}: pass targets.long()")
    if targets.device.type == "cpu" and targets.numel() > 0:
        low, high = int(targets.min()), int(targets.max())
        if low < 0 or high >= vocab_size:
            raise ValueError(
                f"targets must be in [0, vocab_size={vocab_size}), got ids from {low} to {high}: "
                "drop the masked positions, or give them any valid id and mask their log-probs"
            )


def check_options(temperature: float, chunk_size: int | None) -> None:
    """Raises on a temperature that is not positive and finite and on a chunk of no tokens."""
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature must be positive and finite, got {temperature}: use the sampling temperature")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1 token, got {chunk_size}: use None to let it be chosen")


def check_linear(hidden: Tensor, weight: Tensor) -> None:
    """Raises if hidden [N, H] and weight [V/tp, H] can't be multiplied."""
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"hidden {list(hidden.shape)} and weight {list(weight.shape)} must be [tokens, H] and [vocabulary/tp, H]: "
            "flatten the batch and sequence dimensions of hidden"
        )
