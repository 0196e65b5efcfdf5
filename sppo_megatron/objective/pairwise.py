"""The pairwise family: losses of a winner w and a loser l of one group, from their log-ratios against π_t."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sppo_megatron.objective.checks import (
    as_float,
    check_choice,
    check_finite,
    check_ndim,
    check_positive,
    check_probability,
    check_same_shape,
)
from sppo_megatron.objective.reduction import LossSums, valid_rows, weighted_sum

# What each kind needs besides the two log-ratios.
PAIRWISE_KINDS: dict[str, tuple[str, ...]] = {
    "sppo": ("eta", "win_rate_w", "win_rate_l"),
    "sppo_single": ("eta", "preference"),
    "sppo_hard": ("eta",),
    "dpo": ("beta",),
    "spin": ("beta",),
    "ipo": ("beta",),
    "rebel": ("eta", "reward_w", "reward_l"),
    "inpo": ("eta",),
}


def pairwise_loss(
    log_ratio_w: Tensor,
    log_ratio_l: Tensor,
    kind: str,
    beta: float | None = None,
    eta: float | None = None,
    win_rate_w: Tensor | None = None,
    win_rate_l: Tensor | None = None,
    preference: Tensor | None = None,
    *,
    reward_w: Tensor | None = None,
    reward_l: Tensor | None = None,
    ref_log_ratio_w: Tensor | None = None,
    ref_log_ratio_l: Tensor | None = None,
    ref_coef: float = 0.0,
    valid: Tensor | None = None,
    weight: Tensor | None = None,
    validate: bool = True,
) -> LossSums:
    """Σ weight · loss over the valid pairs, and their count. Divide globally: see `LossSums`.

    | kind | loss of a pair | source |
    |---|---|---|
    | `sppo` | ½[(s_w − η(P̂_w − ½))² + (s_l − η(P̂_l − ½))²] | 2405.00675, best and worst of a group |
    | `sppo_single` | ½[(s_w − η(p − ½))² + (s_l + η(p − ½))²], p = P(w ≻ l) | 2405.00675 |
    | `sppo_hard` | (s_w − η/2)² + (s_l + η/2)², no ½ in front | TRL's `sppo_hard` |
    | `dpo`, `spin` | −log σ(β(s_w − s_l)); SPIN's w is the human response, l a sample of π_t | 2305.18290, 2401.01335 |
    | `ipo` | (s_w − s_l − 1/(2β))² | 2310.12036 |
    | `rebel` | ((s_w − s_l)/η − (r_w − r_l))² | 2404.16767 |
    | `inpo` | (h − 1/(2η))², h = s_w − s_l + c(u_w − u_l), u = log π_t − log π_ref | 2407.00617 |

    log_ratio_w, log_ratio_l: [P] nats, complete sums over the response. beta, eta: finite and above 0; INPO's η is the
    weight of its KL to π_t, an **inverse** step size. win_rate_w/l, preference: [P] in [0, 1]. reward_w/l: [P].
    ref_log_ratio_w/l (u) and ref_coef (c = INPO's τ/η, in [0, 1]) are for `inpo`; c = 0 leaves u out. valid: [P], all
    if None. weight: [P] ≥ 0. Everything but the two log-ratios is detached.
    Returns LossSums; loss_sum is fp32 (float64 if log_ratio_w is). With no valid pair it is a zero connected to the
    graph.
    Raises ValueError on an unknown kind, a missing argument of the kind, shapes that differ, beta or eta not above 0
    and, with validate, on non-finite valid pairs, negative weights and probabilities outside [0, 1].
    """
    check_choice("kind", kind, PAIRWISE_KINDS)
    check_ndim("log_ratio_w", log_ratio_w, "[P]")
    check_same_shape("log_ratio_l", log_ratio_l, "log_ratio_w", log_ratio_w)
    valid = valid_rows(valid, "log_ratio_w", log_ratio_w, validate)
    numbers = {"beta": beta, "eta": eta}
    rows = {
        "win_rate_w": win_rate_w,
        "win_rate_l": win_rate_l,
        "preference": preference,
        "reward_w": reward_w,
        "reward_l": reward_l,
        "ref_log_ratio_w": ref_log_ratio_w,
        "ref_log_ratio_l": ref_log_ratio_l,
    }
    needed = _needed(kind, ref_coef, numbers | rows)
    if validate:
        check_finite("log_ratio_w", log_ratio_w, valid)
        check_finite("log_ratio_l", log_ratio_l, valid)

    s_w = torch.where(valid, as_float(log_ratio_w), 0)
    s_l = torch.where(valid, as_float(log_ratio_l), 0)
    scale = {
        name: check_positive(name, number) for name, number in numbers.items() if name in needed and number is not None
    }
    row = {name: _row(name, x, s_w, valid, validate) for name, x in rows.items() if name in needed and x is not None}
    losses = _pair_losses(kind, s_w, s_l, scale, row, ref_coef)
    loss_sum = weighted_sum(losses, valid, weight, validate)
    count = valid.sum().to(loss_sum.dtype)
    margin = (s_w - s_l).detach()  # 0 at invalid pairs
    metrics = {
        "loss_sum": loss_sum.detach(),
        "pairs": count,
        "invalid_pairs": (~valid).sum().to(loss_sum.dtype),
        "pair_margin_sum": margin.sum(),
        "pair_correct_sum": (margin > 0).sum().to(loss_sum.dtype),
    }
    return LossSums(loss_sum, count, metrics)


def _pair_losses(
    kind: str, s_w: Tensor, s_l: Tensor, scale: dict[str, float], row: dict[str, Tensor], ref_coef: float
) -> Tensor:
    """The table of `pairwise_loss`, one loss per pair."""
    margin = s_w - s_l
    if kind in ("dpo", "spin"):
        return -F.logsigmoid(scale["beta"] * margin)
    if kind == "ipo":
        return (margin - 1 / (2 * scale["beta"])).square()
    eta = scale["eta"]
    if kind == "sppo":
        residual_w = s_w - eta * (row["win_rate_w"] - 0.5)
        residual_l = s_l - eta * (row["win_rate_l"] - 0.5)
        return (residual_w.square() + residual_l.square()) / 2
    if kind == "sppo_single":
        target = eta * (row["preference"] - 0.5)
        return ((s_w - target).square() + (s_l + target).square()) / 2
    if kind == "sppo_hard":
        return (s_w - eta / 2).square() + (s_l + eta / 2).square()
    if kind == "rebel":
        return (margin / eta - (row["reward_w"] - row["reward_l"])).square()
    if ref_coef > 0:
        margin = margin + ref_coef * (row["ref_log_ratio_w"] - row["ref_log_ratio_l"])
    return (margin - 1 / (2 * eta)).square()


def _needed(kind: str, ref_coef: float, given: dict[str, Any]) -> tuple[str, ...]:
    """The arguments that a kind's loss is made of. Raises ValueError if one is None."""
    needed = PAIRWISE_KINDS[kind]
    if kind == "inpo" and _checked_ref_coef(ref_coef) > 0:
        needed = (*needed, "ref_log_ratio_w", "ref_log_ratio_l")
    for name in needed:
        if given[name] is None:
            raise ValueError(f"{name}: missing for kind {kind!r}, which needs {', '.join(needed)}")
    return needed


def _row(name: str, x: Tensor, like: Tensor, valid: Tensor, validate: bool) -> Tensor:
    check_same_shape(name, x, "log_ratio_w", like)
    if validate:
        check_finite(name, x, valid)
        if name in ("win_rate_w", "win_rate_l", "preference"):
            check_probability(name, x, valid)
    return torch.where(valid, x.detach().to(like.dtype), 0)


def _checked_ref_coef(ref_coef: float) -> float:
    if not 0 <= ref_coef <= 1:
        raise ValueError(f"ref_coef: must be INPO's tau/eta in [0, 1], got {ref_coef}")
    return ref_coef
