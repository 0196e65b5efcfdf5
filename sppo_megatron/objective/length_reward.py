"""Kimi k1.5's length reward (arXiv 2501.12599, section 2.3.3)."""

from __future__ import annotations

import torch
from torch import Tensor

from sppo_megatron.objective.checks import as_float, check_group_ids, check_mask, check_ndim, check_same_shape


def length_reward(lengths: Tensor, correct: Tensor, group_ids: Tensor, *, validate: bool = True) -> Tensor:
    """λ = ½ − (len − min_len)/(max_len − min_len) in each prompt group: shorter is better, in [−½, ½].

    A correct response gets λ, a wrong one min(0, λ); all get 0 in a group whose lengths are equal. Weigh it, and leave
    it out at the start of a training: it slows learning there.

    lengths: [B] tokens. correct: [B], bool or 0/1. group_ids: [B] integers, in any order.
    Returns fp32 [B], float64 if lengths is. Raises ValueError on shapes that differ, on missing or non-integer
    group_ids and, with validate, on `correct` not being 0/1.
    """
    check_ndim("lengths", lengths, "[B]")
    check_same_shape("correct", correct, "lengths", lengths)
    group_ids = check_group_ids(group_ids, "lengths", lengths)
    if validate:
        check_mask("correct", correct)
    lengths = as_float(lengths)
    ids, group = torch.unique(group_ids, return_inverse=True)
    shortest = lengths.new_zeros(len(ids)).scatter_reduce(0, group, lengths, "amin", include_self=False)[group]
    longest = lengths.new_zeros(len(ids)).scatter_reduce(0, group, lengths, "amax", include_self=False)[group]
    span = longest - shortest
    reward = 0.5 - (lengths - shortest) / torch.where(span > 0, span, 1)
    reward = torch.where(correct.bool(), reward, reward.clamp(max=0))
    return torch.where(span > 0, reward, 0)
