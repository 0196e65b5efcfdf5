"""Baselines per prompt group: what is subtracted from a response's reward before multiplying by η.

A baseline over the whole batch would mix prompts; there is none here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sppo_megatron.objective.checks import (
    as_float,
    check_choice,
    check_finite,
    check_group_ids,
    check_ndim,
    check_positive,
)

BASELINES = ("constant", "mean", "loo_mean", "log_partition", "loo_log_partition")


def group_baseline(
    rewards: Tensor,
    group_ids: Tensor | None,
    kind: str = "constant",
    tau: float | None = None,
    *,
    group_size: int | None = None,
    validate: bool = True,
) -> Tensor:
    """Every row's baseline b, from the rewards of its own prompt group.

    - `constant`: ½, which stands for log Z ≈ η/2 (SPPO, arXiv 2405.00675, eq. 4.7).
    - `mean`: the group's mean reward (Kimi k1.5, arXiv 2501.12599).
    - `log_partition`: τ log mean_j exp(r_j/τ), the exact normaliser of π_t exp(r/τ) (SPPO's eq. 4.4, Kimi's eq. 2).
    - `loo_mean`, `loo_log_partition`: the same over the other K − 1 responses of the group.

    rewards: [B] (or win rates). group_ids: [B] integers in any order, equal ids being one prompt's group; groups may
    differ in size. May be None for `constant`. tau: τ = 1/η > 0, for the two log-partition kinds. group_size: K if
    every group must be whole, so that a group split across ranks or batches raises instead of getting a wrong baseline.
    Returns [B], fp32 or float64, detached. If a group's rewards are all equal, the baseline equals them exactly for
    every kind but `constant`. Groups have data-dependent shapes, so the device is waited for.
    Raises ValueError on an unknown kind, missing or non-integer group_ids, a missing or non-positive tau, leave-one-out
    in a group of one, a group that isn't of group_size and, with validate, on non-finite rewards.
    """
    check_choice("kind", kind, BASELINES)
    check_ndim("rewards", rewards, "[B]")
    if validate:
        check_finite("rewards", rewards)
    rewards = as_float(rewards.detach())
    if kind == "constant" and group_ids is None:
        return torch.full_like(rewards, 0.5)
    group_ids = check_group_ids(group_ids, "rewards", rewards)
    if rewards.numel() == 0:
        return torch.zeros_like(rewards)
    group, place, sizes = _group_layout(group_ids)
    _check_sizes(sizes, group_size, kind)
    if kind == "constant":
        return torch.full_like(rewards, 0.5)

    padded = rewards.new_full((len(sizes), int(sizes.max())), -torch.inf)  # [G, K]
    padded[group, place] = rewards
    # All below is relative to the group's largest reward: exp can't overflow, and equal rewards give exact zeros.
    largest = padded.amax(dim=1, keepdim=True)
    shifted = padded - largest
    if kind.endswith("mean"):
        shift = _mean_others(shifted, sizes) if kind == "loo_mean" else _mean(shifted, sizes)
    else:
        if tau is None:
            raise ValueError(f"tau: missing for kind {kind!r}; pass tau = 1/eta")
        tau = check_positive("tau", tau)
        if kind == "loo_log_partition":
            shift = tau * _log_mean_exp_others(shifted / tau, sizes)
        else:
            shift = tau * _log_mean_exp(shifted / tau, sizes)
    return (largest + shift)[group, place]


def _group_layout(group_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each row's group number [B] and its place inside the group [B], and the groups' sizes [G]."""
    _, group, sizes = torch.unique(group_ids, return_inverse=True, return_counts=True)
    order = torch.argsort(group, stable=True)
    first = sizes.cumsum(0) - sizes
    place = torch.empty_like(group)
    place[order] = torch.arange(len(group), device=group.device) - first[group[order]]
    return group, place, sizes


def _check_sizes(sizes: Tensor, group_size: int | None, kind: str) -> None:
    if group_size is not None and bool((sizes != group_size).any()):
        raise ValueError(
            f"group_ids: groups have {int(sizes.min())} to {int(sizes.max())} rows, group_size is {group_size}; "
            "a group must not be split across ranks or batches, gather it before computing its baseline"
        )
    if kind.startswith("loo") and bool((sizes < 2).any()):
        raise ValueError(
            f"group_ids: a group has 1 row and kind {kind!r} leaves it out; use at least 2 responses per prompt, or "
            "kind 'mean' or 'log_partition'"
        )


def _mean(x: Tensor, sizes: Tensor) -> Tensor:
    """Mean over each group. x: [G, K], −inf if a group has no such place. Returns [G, K]."""
    total = torch.where(torch.isfinite(x), x, 0).sum(dim=1, keepdim=True)
    return (total / sizes[:, None]).expand_as(x)


def _mean_others(x: Tensor, sizes: Tensor) -> Tensor:
    present = torch.where(torch.isfinite(x), x, 0)
    return (present.sum(dim=1, keepdim=True) - present) / (sizes[:, None] - 1)


def _log_mean_exp(x: Tensor, sizes: Tensor) -> Tensor:
    """log of the mean of exp(x) over each group; x ≤ 0, and 0 is reached in every group."""
    return (x.exp().sum(dim=1, keepdim=True) / sizes[:, None]).log().expand_as(x)


def _log_mean_exp_others(x: Tensor, sizes: Tensor) -> Tensor:
    """The same over the others, each row with its own maximum: subtracting exp(x_i) from the sum fails at small τ."""
    itself = torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
    others = torch.where(itself, -torch.inf, x[:, None, :])  # [G, K, K]
    largest = others.amax(dim=2)
    mean = (others - largest[:, :, None]).exp().sum(dim=2) / (sizes[:, None] - 1)
    return largest + mean.log()
