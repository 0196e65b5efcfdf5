"""The regression family: (s − δ)² per response, with s = log π_θ(y|x) − log π_t(y|x) and a target δ in nats.

SPPO's (4.4) and (4.7) (arXiv 2405.00675), Kimi k1.5's mirror-descent loss (arXiv 2501.12599) and reward SPPO differ in
δ alone: which reward, and which baseline is subtracted before multiplying by η.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sppo_megatron.objective.checks import (
    as_float,
    check_choice,
    check_finite,
    check_mask,
    check_ndim,
    check_positive,
    check_same_shape,
)
from sppo_megatron.objective.reduction import LOSS_AGG_MODES, LossSums, sequence_weights, valid_rows, weighted_sum

LOSS_SCALES = ("sppo", "kimi")


def resolve_eta(eta: float | None, tau: float | None) -> float:
    """SPPO's step size η from exactly one of η and Kimi's temperature τ = 1/η.

    Raises ValueError on neither, on both, and on a value that is not a finite number above 0.
    """
    if (eta is None) == (tau is None):
        given = "neither" if eta is None else "both"
        raise ValueError(f"eta, tau: {given} given; give exactly one (tau = 1/eta)")
    if eta is not None:
        return check_positive("eta", eta)
    assert tau is not None
    return 1.0 / check_positive("tau", tau)


def sequence_log_ratio(
    log_probs: Tensor, old_log_probs: Tensor, response_mask: Tensor, *, validate: bool = True
) -> tuple[Tensor, Tensor]:
    """s: the sum over response tokens of log π_θ − log π_t, in nats, and the response length in tokens.

    log_probs, old_log_probs: [B, T], any float dtype; old_log_probs is detached. response_mask: [B, T], bool or 0/1.
    Returns (log_ratio [B] in fp32, or float64 if an input is; length [B] int64). What masked places hold never
    matters, NaN and infinities included; an empty row has log_ratio 0 and length 0.
    Raises ValueError on shapes that differ and, with validate, on a mask that isn't 0/1 and on non-finite valid places.
    """
    check_ndim("log_probs", log_probs, "[B, T]")
    check_same_shape("old_log_probs", old_log_probs, "log_probs", log_probs)
    check_same_shape("response_mask", response_mask, "log_probs", log_probs)
    mask = response_mask.bool()
    if validate:
        check_mask("response_mask", response_mask)
        check_finite("log_probs", log_probs, mask)
        check_finite("old_log_probs", old_log_probs, mask)
    # `where` comes before any arithmetic: NaN * 0 is NaN, in the value and in the gradient. Subtracting per token
    # before summing keeps the small difference of two large sums.
    log_probs = torch.where(mask, as_float(log_probs), 0)
    old_log_probs = torch.where(mask, as_float(old_log_probs.detach()), 0)
    return (log_probs - old_log_probs).sum(dim=1), mask.sum(dim=1)


def regression_target(
    rewards: Tensor, baseline: Tensor, eta: float, *, clip: float | None = None, validate: bool = True
) -> Tensor:
    """δ = η (reward − baseline), in nats: the advantage of the response, and what s is regressed on.

    rewards: [B], r(x, y, y*) or the win rate P̂(y ≻ π_t|x). baseline: [B], of `group_baseline`. eta: η = 1/τ. clip:
    bound on |δ| in nats (the target is what may be clipped: clipping s would kill the gradient that restores it).
    Returns [B], fp32 or float64, detached. Raises ValueError on shapes that differ, on η or clip not above 0 and, with
    validate, on non-finite values.
    """
    check_ndim("rewards", rewards, "[B]")
    check_same_shape("baseline", baseline, "rewards", rewards)
    eta = check_positive("eta", eta)
    if validate:
        check_finite("rewards", rewards)
        check_finite("baseline", baseline)
    target = eta * (as_float(rewards.detach()) - as_float(baseline.detach()))
    if clip is not None:
        bound = check_positive("clip", clip)
        target = target.clamp(-bound, bound)
    return target


def sppo_loss(
    log_ratio: Tensor,
    target: Tensor,
    *,
    valid: Tensor | None = None,
    weight: Tensor | None = None,
    loss_scale: str = "sppo",
    eta: float | None = None,
    validate: bool = True,
) -> LossSums:
    """Σ weight · (s − δ)² over the valid rows, and their count. Divide globally: see `LossSums`.

    log_ratio: [B], s in nats, **complete** sums over the response (all context-parallel shards and chunks) since a
    square of parts isn't the square of the sum. target: [B], δ in nats, detached here. valid: [B], bool or 0/1, all
    rows if None; pass length > 0 so that empty responses neither add loss nor dilute the mean. weight: [B] ≥ 0,
    detached here:
    `sequence_weights` times importance weights. loss_scale: `sppo`, the plain square (2405.00675, eq. 4.7), or `kimi`,
    which multiplies by 1/(2η) = τ/2 so that the gradient is 2501.12599's eq. 3 and doesn't grow with η; it needs eta.
    Returns LossSums; loss_sum is fp32 (float64 if log_ratio is). With no valid row it is a zero connected to the
    graph.
    Raises ValueError on shapes that differ, an unknown loss_scale, a missing or non-positive eta for `kimi` and, with
    validate, on non-finite valid rows and negative weights.
    """
    check_ndim("log_ratio", log_ratio, "[B]")
    check_same_shape("target", target, "log_ratio", log_ratio)
    check_choice("loss_scale", loss_scale, LOSS_SCALES)
    valid = valid_rows(valid, "log_ratio", log_ratio, validate)
    if validate:
        check_finite("log_ratio", log_ratio, valid)
        check_finite("target", target, valid)
    log_ratio = torch.where(valid, as_float(log_ratio), 0)
    residual = log_ratio - torch.where(valid, target.detach().to(log_ratio.dtype), 0)
    losses = residual.square()
    if loss_scale == "kimi":
        if eta is None:
            raise ValueError("eta: missing for loss_scale 'kimi', which multiplies by 1/(2 eta); pass eta")
        losses = losses / (2 * check_positive("eta", eta))
    loss_sum = weighted_sum(losses, valid, weight, validate)
    count = valid.sum().to(loss_sum.dtype)
    metrics = {
        "loss_sum": loss_sum.detach(),
        "sequences": count,
        "invalid_sequences": (~valid).sum().to(loss_sum.dtype),
    }
    return LossSums(loss_sum, count, metrics)


def compute_sppo_loss(
    old_log_prob: Tensor,
    log_prob: Tensor,
    rewards: Tensor,
    response_mask: Tensor,
    eta: float = 1.0,
    loss_agg_mode: str = "seq-mean-token-sum",
) -> tuple[Tensor, Tensor, Tensor]:
    """The whole loss of one local batch: mean of (s − η(r − ½))² over its responses.

    old_log_prob, log_prob: [B, T] nats, the first of the frozen π_t and detached. rewards: [B]. response_mask: [B, T],
    bool or 0/1. eta: η > 0. loss_agg_mode: `seq-mean-token-sum` (plain mean), `seq-mean-token-mean` (each squared
    residual divided by its own length), `token-mean` (a masked **sequence** mean, not a mean over tokens).
    Returns (loss scalar, log_ratios [B], scaled_rewards [B] = η(r − ½)), fp32 or float64; scaled_rewards is detached.
    A row with an empty response neither adds loss nor dilutes the mean, in every mode; the other definition, in which
    such a row counts as (0 − η(r − ½))² in the two `seq-mean` modes, gives the same values if no row is empty.
    This is a mean over the batch it is given: over micro-batches or ranks use `sppo_loss`, whose sums add up.
    Raises ValueError on an unknown mode, η not above 0, shapes that differ and non-finite values at valid places.
    """
    check_choice("loss_agg_mode", loss_agg_mode, LOSS_AGG_MODES)
    eta = check_positive("eta", eta)
    check_ndim("log_prob", log_prob, "[B, T]")
    check_same_shape("old_log_prob", old_log_prob, "log_prob", log_prob)
    log_ratios, lengths = sequence_log_ratio(log_prob, old_log_prob, response_mask)
    check_same_shape("rewards", rewards, "the batch", log_ratios)
    valid = lengths > 0
    check_finite("rewards", rewards, valid)
    scaled_rewards = eta * (as_float(rewards.detach()) - 0.5)
    sums = sppo_loss(log_ratios, scaled_rewards, valid=valid, weight=sequence_weights(lengths, loss_agg_mode))
    return sums.loss_sum / sums.weight_sum.clamp(min=1), log_ratios, scaled_rewards
