"""Win rates P̂(y ≻ π_t|x): how often a response beats the policy that wrote it, estimated inside its own group."""

from __future__ import annotations

import torch
from torch import Tensor

from sppo_megatron.objective.checks import as_float, check_choice, check_finite, check_ndim, check_probability

ESTIMATORS = ("include_self", "leave_one_out")


def check_preference(preference: Tensor, tolerance: float = 1e-4) -> None:
    """Raises ValueError unless P is a preference: [..., K, K], in [0, 1], and P + Pᵀ = 1 within tolerance.

    The diagonal is therefore ½. A judge asked in one order only is not complementary: ask it both ways and average
    P_ij with 1 − P_ji. Transitivity is not required. Waits for the device.
    """
    if preference.ndim < 2 or preference.shape[-1] != preference.shape[-2]:
        raise ValueError(f"preference: expected shape [..., K, K], got {list(preference.shape)}")
    check_finite("preference", preference)
    check_probability("preference", preference)
    preference = as_float(preference.detach())
    worst = (preference + preference.transpose(-1, -2) - 1).abs()
    if worst.numel() and float(worst.max()) > tolerance:
        raise ValueError(
            f"preference: |P + P^T - 1| reaches {float(worst.max()):.4g}, above the tolerance {tolerance:g}; "
            "P[i, j] must be 1 - P[j, i] with a half on the diagonal, average the judge's two orders"
        )


def preference_from_scores(scores: Tensor, *, validate: bool = True) -> Tensor:
    """P_ij = σ(score_i − score_j): the Bradley–Terry preference of scalar scores, which is always transitive.

    scores: [..., K], in nats of odds (a reward model's logits). Returns [..., K, K], fp32 or float64, detached.
    Raises ValueError on a tensor without axes and, with validate, on non-finite scores.
    """
    if scores.ndim < 1:
        raise ValueError("scores: expected shape [G, K], got a scalar; pass the scores of a group")
    if validate:
        check_finite("scores", scores)
    scores = as_float(scores.detach())
    return torch.sigmoid(scores[..., :, None] - scores[..., None, :])


def gated_preference(preference: Tensor, overlap: Tensor, *, validate: bool = True) -> Tensor:
    """½ + (1 − o)(P − ½): responses that mean the same are a tie, however sure the judge is (S-SPPO, arXiv 2606.01561).

    preference: [..., K, K]. overlap: the same shape, o_ij = o_ji in [0, 1], 1 for responses that mean the same. P + Pᵀ
    = 1 stays true, so the game stays one of a constant sum. Returns fp32 or float64, detached.
    Raises ValueError for other shapes and, with validate, on an overlap outside of [0, 1] or without symmetry.
    """
    if preference.shape != overlap.shape:
        raise ValueError(f"overlap: expected shape {list(preference.shape)}, got {list(overlap.shape)}")
    if validate:
        check_finite("overlap", overlap)
        check_probability("overlap", overlap)
        if not torch.equal(overlap, overlap.transpose(-1, -2)):
            raise ValueError("overlap: must be symmetric, o[i, j] = o[j, i]")
    return 0.5 + (1 - as_float(overlap.detach())) * (as_float(preference.detach()) - 0.5)


def win_rates(
    preference: Tensor, estimator: str = "include_self", *, tolerance: float = 1e-4, validate: bool = True
) -> Tensor:
    """P̂ of every response of every group. SPPO (arXiv 2405.00675, section 5) uses `include_self`.

    - `include_self`: (1/K) Σ_k P(y_i ≻ y_k) with P_ii = ½.
    - `leave_one_out`: the mean over the other K − 1. include_self − ½ = ((K−1)/K)(leave_one_out − ½), so changing the
      estimator rescales η.

    preference: [G, K, K], entry (i, j) = P(y_i ≻ y_j). Returns [G, K], fp32 or float64, detached.
    Raises ValueError on an unknown estimator, a wrong shape, leave_one_out with K < 2 and, with validate, on values
    outside [0, 1] and on a matrix that is not complementary within tolerance.
    """
    check_choice("estimator", estimator, ESTIMATORS)
    check_ndim("preference", preference, "[G, K, K]")
    k, m = preference.shape[1:]
    if k != m:
        raise ValueError(
            f"preference: expected shape [G, K, K], got {list(preference.shape)}; pass comparisons within a group"
        )
    if estimator == "leave_one_out" and k < 2:
        raise ValueError(
            f"preference: leave_one_out needs at least 2 responses per prompt, got K = {k}; use include_self"
        )
    if validate:
        check_preference(preference, tolerance)
    itself = torch.eye(k, dtype=torch.bool, device=preference.device)
    others = torch.where(itself, 0, as_float(preference.detach())).sum(dim=2)
    return others / (k - 1) if estimator == "leave_one_out" else (others + 0.5) / k
