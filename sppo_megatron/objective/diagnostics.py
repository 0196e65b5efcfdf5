"""What is logged about a step: additive sums and maxima of each micro-batch, turned into numbers after the reduction.

Sums are float64 and add up over micro-batches and data-parallel ranks; maxima are reduced by max (a minimum is the
maximum of the negated value). Both dicts hold scalars and their keys depend only on which arguments are given, so every
rank has the same ones. Nothing here waits for the device but `finalize_diagnostics`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from sppo_megatron.objective.checks import check_group_ids, check_ndim, check_positive, check_same_shape
from sppo_megatron.objective.reduction import valid_rows

Sums = dict[str, Tensor]
K3_BOUND = 20.0  # nats; exp of a larger per-token log-ratio says no more than "broken"


def regression_diagnostics(
    log_ratio: Tensor,
    target: Tensor,
    lengths: Tensor,
    *,
    valid: Tensor | None = None,
    tau: float | None = None,
    rewards: Tensor | None = None,
    win_rate: Tensor | None = None,
    truncated: Tensor | None = None,
    importance_weight: Tensor | None = None,
    rollout_log_ratio: Tensor | None = None,
) -> tuple[Sums, Sums]:
    """Sums and maxima over the valid responses. Every tensor is [B], of **complete** sequences.

    log_ratio: s, nats. target: δ, nats. lengths: tokens. valid: lengths > 0 if None. tau: τ of the implied reward
    τ·s. win_rate: P̂ against π_t. truncated: 1 if cut off at the limit.
    importance_weight: w of a response. rollout_log_ratio: Σ_t (old − rollout) log-probs, nats.
    Returns (sums, maxima), detached. Raises ValueError on shapes that differ.
    """
    check_ndim("log_ratio", log_ratio, "[B]")
    check_same_shape("lengths", lengths, "log_ratio", log_ratio)
    valid = lengths > 0 if valid is None else valid_rows(valid, "log_ratio", log_ratio, validate=False)
    columns: dict[str, Tensor | None] = {
        "target": target,
        "reward": rewards,
        "win_rate": win_rate,
        "truncated": truncated,
        "importance_weight": importance_weight,
        "rollout_log_ratio": rollout_log_ratio,
    }
    rows = {name: _masked(name, x, valid) for name, x in columns.items() if x is not None}
    s, delta = _masked("log_ratio", log_ratio, valid), rows.pop("target")
    sums = {
        "sequences": valid.sum().double(),
        "invalid_sequences": (~valid).sum().double(),
        "response_tokens": _masked("lengths", lengths, valid).sum(),
        "log_ratio_sum": s.sum(),
        "log_ratio_sq_sum": s.square().sum(),
        "target_sum": delta.sum(),
        "target_sq_sum": delta.square().sum(),
        "residual_sq_sum": (s - delta).square().sum(),
        "signed_targets": (delta != 0).sum().double(),
        "sign_agreement_sum": (s * delta.sign() > 0).sum().double(),
    }
    if tau is not None:
        sums["implied_reward_sum"] = check_positive("tau", tau) * s.sum()
    if importance_weight is not None:
        sums["importance_weight_sq_sum"] = rows["importance_weight"].square().sum()
    if rollout_log_ratio is not None:
        sums["rollout_diff_sequence_sum"] = rows.pop("rollout_log_ratio").abs().sum()
    sums |= {f"{name}_sum": x.sum() for name, x in rows.items()}
    maxima = {"log_ratio_max": _max(s, valid), "neg_log_ratio_min": _max(-s, valid)}
    return sums, maxima


def token_diagnostics(
    log_probs: Tensor,
    old_log_probs: Tensor,
    response_mask: Tensor,
    *,
    entropy: Tensor | None = None,
    rollout_log_probs: Tensor | None = None,
) -> tuple[Sums, Sums]:
    """Sums and maxima over response tokens: any shape, [B, T] or packed, and any shard of a sequence.

    log_probs, old_log_probs, rollout_log_probs: nats. response_mask: bool or 0/1. entropy: nats per token.
    Sharded sequences (context parallel): add these over the shards, too, which isn't so for `regression_diagnostics`.
    Returns (sums, maxima), detached. Raises ValueError on shapes that differ.
    """
    check_same_shape("response_mask", response_mask, "log_probs", log_probs)
    mask = response_mask.bool()
    old = _masked("old_log_probs", old_log_probs, mask)
    log_ratio = _masked("log_probs", log_probs, mask) - old
    k3 = log_ratio.clamp(max=K3_BOUND).expm1() - log_ratio
    sums = {"tokens": mask.sum().double(), "k3_sum": k3.sum()}
    maxima: Sums = {}
    if entropy is not None:
        sums["entropy_sum"] = _masked("entropy", entropy, mask).sum()
    if rollout_log_probs is not None:
        difference = (old - _masked("rollout_log_probs", rollout_log_probs, mask)).abs()
        sums["rollout_diff_sum"] = difference.sum()
        maxima["rollout_log_prob_diff_max"] = _max(difference, mask)
    return sums, maxima


def degenerate_group_sums(rewards: Tensor, group_ids: Tensor) -> Sums:
    """How many prompt groups there are, and in how many all rewards are equal (those teach nothing about order).

    rewards: [B]. group_ids: [B] integers. Only for **whole** groups: a group split over two calls counts twice.
    Returns sums. Raises ValueError on shapes that differ and on missing or non-integer group_ids.
    """
    group_ids = check_group_ids(group_ids, "rewards", rewards)
    ids, group = torch.unique(group_ids, return_inverse=True)
    rewards = rewards.detach().double()
    empty = rewards.new_zeros(len(ids))
    smallest = empty.scatter_reduce(0, group, rewards, "amin", include_self=False)
    largest = empty.scatter_reduce(0, group, rewards, "amax", include_self=False)
    return {"groups": rewards.new_tensor(float(len(ids))), "degenerate_groups": (smallest == largest).sum().double()}


def finalize_diagnostics(
    sums: Mapping[str, Tensor | float],
    maxima: Mapping[str, Tensor | float],
    means: Mapping[str, tuple[str, str]] = MappingProxyType({}),
) -> dict[str, float]:
    """The metrics of a step from globally reduced sums and maxima. Waits for the device.

    means: metrics of an objective's own, (numerator, denominator) among the sums.

    The metrics' meanings and units (all nats unless noted):
    log_ratio_{mean, std, min, max, abs_max} of s over sequences, log_ratio_per_token = Σs/Σlength; target_{mean, std}
    of δ; residual_rms = sqrt(mean (s − δ)²); r_squared = 1 − Σ(s − δ)²/Σ(δ − mean δ)²; sign_agreement: share of the δ ≠
    0 whose sign s has; implied_reward_mean: mean τ·s; kl_k1 = mean −s, kl_k2 = mean s²/2 (per sequence) and kl_k3 =
    mean of e^s − 1 − s (per token), all of KL(π_t‖π_θ) since the samples are π_t's; entropy per token; reward_mean,
    win_rate_mean; degenerate_group_share, truncation_rate: shares; response_length_mean: tokens;
    rollout_log_prob_diff_{mean, max} of |old − rollout| per token, rollout_log_prob_diff_sequence_mean of |Σ_t (old −
    rollout)| per sequence (a bias per token grows with length here); importance_ess = (Σw)²/Σw², in sequences.
    sequences and invalid_sequences are counts. Standard deviations are the population's.

    A metric whose inputs are missing, or which isn't defined (no valid rows, no spread in δ), is left out: no NaN is
    returned. log_ratio_abs_max is always there, 0 without any row.
    """
    total = {name: float(value) for name, value in sums.items()}
    metrics: dict[str, float] = {
        name: total[name] for name in ("sequences", "invalid_sequences", "pairs", "invalid_pairs") if name in total
    }
    for name, (numerator, denominator) in (*_MEANS.items(), *means.items()):
        if numerator in total and total.get(denominator, 0) > 0:
            metrics[name] = total[numerator] / total[denominator]
    if total.get("sequences", 0) > 0 and "log_ratio_sum" in total:
        metrics |= _moments(total)
    if total.get("importance_weight_sq_sum", 0) > 0:
        metrics["importance_ess"] = total["importance_weight_sum"] ** 2 / total["importance_weight_sq_sum"]
    return metrics | _extremes({name: float(value) for name, value in maxima.items()})


# metric: (numerator, denominator)
_MEANS = {
    "log_ratio_mean": ("log_ratio_sum", "sequences"),
    "log_ratio_per_token": ("log_ratio_sum", "response_tokens"),
    "target_mean": ("target_sum", "sequences"),
    "sign_agreement": ("sign_agreement_sum", "signed_targets"),
    "implied_reward_mean": ("implied_reward_sum", "sequences"),
    "kl_k3": ("k3_sum", "tokens"),
    "entropy": ("entropy_sum", "tokens"),
    "reward_mean": ("reward_sum", "sequences"),
    "win_rate_mean": ("win_rate_sum", "sequences"),
    "degenerate_group_share": ("degenerate_groups", "groups"),
    "truncation_rate": ("truncated_sum", "sequences"),
    "response_length_mean": ("response_tokens", "sequences"),
    "rollout_log_prob_diff_mean": ("rollout_diff_sum", "tokens"),
    "rollout_log_prob_diff_sequence_mean": ("rollout_diff_sequence_sum", "sequences"),
}


def _moments(total: Mapping[str, float]) -> dict[str, float]:
    n = total["sequences"]
    log_ratio_spread = _spread(total["log_ratio_sum"], total["log_ratio_sq_sum"], n)
    target_spread = _spread(total["target_sum"], total["target_sq_sum"], n)
    metrics: dict[str, float] = {
        "log_ratio_std": math.sqrt(log_ratio_spread / n),
        "target_std": math.sqrt(target_spread / n),
        "residual_rms": math.sqrt(total["residual_sq_sum"] / n),
        "kl_k1": -total["log_ratio_sum"] / n,
        "kl_k2": total["log_ratio_sq_sum"] / (2 * n),
    }
    if target_spread > 0:
        metrics["r_squared"] = 1 - total["residual_sq_sum"] / target_spread
    return metrics


def _spread(total: float, squares: float, n: float) -> float:
    """Σ(x − mean)², with what is only rounding taken as 0."""
    spread = squares - total * total / n
    return spread if spread > 1e-12 * squares else 0.0


def _extremes(maxima: dict[str, float]) -> dict[str, float]:
    found = {name: value for name, value in maxima.items() if value != -math.inf}
    if "neg_log_ratio_min" in found:
        found["log_ratio_min"] = -found.pop("neg_log_ratio_min")
    ends = [abs(found[name]) for name in ("log_ratio_min", "log_ratio_max") if name in found]
    return found | {"log_ratio_abs_max": max(ends, default=0.0)}


def _masked(name: str, x: Tensor, valid: Tensor) -> Tensor:
    check_same_shape(name, x, "the mask", valid)
    return torch.where(valid, x.detach().double(), 0)


def _max(x: Tensor, valid: Tensor) -> Tensor:
    """The largest valid value, −inf if there is none."""
    return torch.cat([torch.where(valid, x, -torch.inf).flatten(), x.new_full((1,), -torch.inf)]).max()
