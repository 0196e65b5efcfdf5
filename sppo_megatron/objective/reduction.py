"""How row losses become a number: additive sums, divided once by the global count of valid rows.

A mean of per-micro-batch or per-rank means is not the global mean, so nothing here divides by a local count. The caller
sums `loss_sum` and `weight_sum` over micro-batches and data-parallel ranks; their quotient is the loss.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sppo_megatron.objective.checks import (
    check_choice,
    check_mask,
    check_nonnegative,
    check_positive,
    check_same_shape,
)

# The seed's names and what each of them does to a row's squared residual.
LOSS_AGG_MODES = {"seq-mean-token-sum": "none", "seq-mean-token-mean": "length", "token-mean": "none"}
SEQUENCE_WEIGHTS = ("none", "length", "max_length")


class LossSums(NamedTuple):
    """Sums over the valid rows of one micro-batch, to be added over micro-batches and data-parallel ranks.

    loss_sum: scalar, differentiable, Σ weight · loss over valid rows (nats² for the regression family).
    weight_sum: scalar, detached: the **count** of valid rows, which is the denominator of the global mean. A row's
        weight scales its loss and leaves the denominator alone.
    metrics: detached scalars that add up over micro-batches and ranks, too.
    """

    loss_sum: Tensor
    weight_sum: Tensor
    metrics: dict[str, Tensor]


def sequence_weights(lengths: Tensor, mode: str, *, max_length: int | None = None) -> Tensor:
    """A row's weight under an aggregation mode.

    - `none`: 1, the plain mean over sequences. The seed's `seq-mean-token-sum`, and its `token-mean` too, which is a
      mean over the sequences that have any token and not a mean over tokens.
    - `length`: 1/length: each squared residual is divided by its own response length. The seed's `seq-mean-token-mean`.
    - `max_length`: 1/max_length, one constant for all rows (a scale that does not favour short responses).

    lengths: [B], tokens. mode: a clear name or one of the seed's three. max_length: tokens, for `max_length` alone.
    Returns float64 [B]. A row of length 0 gets a finite weight; it is the caller's to mark it invalid.
    Raises ValueError on an unknown mode and on a missing or non-positive max_length.
    """
    check_choice("mode", mode, (*SEQUENCE_WEIGHTS, *LOSS_AGG_MODES))
    weighting = LOSS_AGG_MODES.get(mode, mode)
    lengths = lengths.double()  # so that a float64 loss stays exact; `weighted_sum` casts to the loss
    if weighting == "length":
        return 1.0 / lengths.clamp(min=1)
    if weighting == "max_length":
        if max_length is None:
            raise ValueError("max_length: missing for mode 'max_length'; pass the largest response length in tokens")
        return torch.full_like(lengths, 1.0 / check_positive("max_length", max_length))
    return torch.ones_like(lengths)


def valid_rows(valid: Tensor | None, rows_name: str, rows: Tensor, validate: bool) -> Tensor:
    """`valid` as bool, of the shape of `rows`; None means that every row counts."""
    if valid is None:
        return torch.ones_like(rows, dtype=torch.bool)
    check_same_shape("valid", valid, rows_name, rows)
    if validate:
        check_mask("valid", valid)
    return valid.bool()


def weighted_sum(losses: Tensor, valid: Tensor, weight: Tensor | None, validate: bool) -> Tensor:
    """Σ weight · loss over valid rows. All rows invalid: a zero that is still connected to the graph."""
    if weight is not None:
        check_same_shape("weight", weight, "the rows", losses)
        if validate:
            check_nonnegative("weight", weight, valid)
        losses = losses * torch.where(valid, weight.detach().to(losses.dtype), 1)
    return torch.where(valid, losses, 0).sum()
