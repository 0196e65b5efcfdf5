"""Pairwise losses against worked numbers, independent definitions and derivatives."""

from __future__ import annotations

import math

import pytest
import torch

from sppo_megatron.objective import PAIRWISE_KINDS, pairwise_loss, sppo_loss

F64 = torch.float64


def t(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=F64)


WORKED = {
    "dpo": ({"beta": 0.1}, 0.66845965),
    "spin": ({"beta": 0.1}, 0.66845965),
    "ipo": ({"beta": 0.1}, 20.25),
    "sppo_hard": ({"eta": 10.0}, 45.37),
    "sppo_single": ({"eta": 10.0, "preference": t(0.8)}, 7.685),
    "sppo": ({"eta": 10.0, "win_rate_w": t(0.74), "win_rate_l": t(0.26)}, 4.745),
    "rebel": ({"eta": 2.0, "reward_w": t(1.0), "reward_l": t(0.2)}, (0.25 - 0.8) ** 2),
    "inpo": ({"eta": 0.2}, (0.5 - 2.5) ** 2),
}


def definition(kind, w, losing, o):
    """Each loss and its derivatives with respect to s_w and s_l, by hand."""
    d = w - losing
    if kind in ("dpo", "spin"):
        slope = -o["beta"] / (1 + math.exp(o["beta"] * d))
        return math.log(1 + math.exp(-o["beta"] * d)), slope, -slope
    if kind == "ipo":
        r = d - 1 / (2 * o["beta"])
        return r * r, 2 * r, -2 * r
    eta = o["eta"]
    if kind == "rebel":
        r = d / eta - float(o["reward_w"] - o["reward_l"])
        return r * r, 2 * r / eta, -2 * r / eta
    if kind == "inpo":
        r = d - 1 / (2 * eta)
        return r * r, 2 * r, -2 * r
    aim_w, aim_l, half = {
        "sppo": lambda: (eta * (float(o["win_rate_w"]) - 0.5), eta * (float(o["win_rate_l"]) - 0.5), 0.5),
        "sppo_single": lambda: (eta * (float(o["preference"]) - 0.5), -eta * (float(o["preference"]) - 0.5), 0.5),
        "sppo_hard": lambda: (eta / 2, -eta / 2, 1.0),
    }[kind]()
    a, b = w - aim_w, losing - aim_l
    return half * (a * a + b * b), 2 * half * a, 2 * half * b


def test_every_kind_is_covered():
    assert set(WORKED) == set(PAIRWISE_KINDS)


@pytest.mark.parametrize("kind", PAIRWISE_KINDS)
def test_worked_values_and_gradients(kind):
    options, value = WORKED[kind]
    w, losing = t(0.6).requires_grad_(), t(0.1).requires_grad_()
    sums = pairwise_loss(w, losing, kind=kind, **options)
    sums.loss_sum.backward()
    assert sums.loss_sum.item() == pytest.approx(value, abs=1e-8)
    expected = definition(kind, 0.6, 0.1, options)
    assert (sums.loss_sum.item(), w.grad.item(), losing.grad.item()) == pytest.approx(expected, abs=1e-10)
    assert sums.weight_sum == 1


@pytest.mark.parametrize("kind", PAIRWISE_KINDS)
def test_gradcheck(kind):
    options, _ = WORKED[kind]
    assert torch.autograd.gradcheck(
        lambda w, losing: pairwise_loss(w, losing, kind=kind, **options).loss_sum,
        (t(-0.4).requires_grad_(), t(1.3).requires_grad_()),
    )


def many(options, n):
    return {k: v.expand(n).clone() if isinstance(v, torch.Tensor) else v for k, v in options.items()}


@pytest.mark.parametrize("kind", PAIRWISE_KINDS)
def test_pairs_add_up_and_invalid_pairs_do_not_count(kind):
    options = many(WORKED[kind][0], 4)
    w = t(0.6, -1.0, 2.0, math.nan).requires_grad_()
    losing = t(0.1, 0.4, -0.3, math.inf).requires_grad_()
    for name, x in options.items():
        if isinstance(x, torch.Tensor):
            x[3] = math.nan
            options[name] = x
    valid, weight = torch.tensor([1, 1, 1, 0]), t(1, 0.5, 2, math.nan)
    sums = pairwise_loss(w, losing, kind=kind, valid=valid, weight=weight, **options)
    sums.loss_sum.backward()
    expected = sum(
        c * definition(kind, a, b, WORKED[kind][0])[0] for c, a, b in [(1, 0.6, 0.1), (0.5, -1, 0.4), (2, 2, -0.3)]
    )
    assert sums.loss_sum.item() == pytest.approx(expected)
    assert sums.weight_sum == 3 and sums.metrics["invalid_pairs"] == 1
    assert sums.metrics["pair_correct_sum"] == 2
    assert sums.metrics["pair_margin_sum"].item() == pytest.approx(0.5 - 1.4 + 2.3)
    assert w.grad[3] == 0 and losing.grad[3] == 0 and torch.isfinite(w.grad).all()


@pytest.mark.parametrize("kind", PAIRWISE_KINDS)
def test_all_pairs_invalid_is_a_connected_zero(kind):
    w = torch.ones(1, dtype=F64, requires_grad=True)
    sums = pairwise_loss(w, t(0.0), kind=kind, valid=torch.zeros(1), **WORKED[kind][0])
    sums.loss_sum.backward()
    assert (sums.loss_sum.item(), sums.weight_sum.item(), w.grad.item()) == (0, 0, 0)


def test_sppo_is_half_the_regression_on_both():
    w, losing, rate_w, rate_l = t(0.6, 0.2), t(0.1, -1), t(0.74, 0.6), t(0.26, 0.5)
    pair = pairwise_loss(w, losing, "sppo", eta=10.0, win_rate_w=rate_w, win_rate_l=rate_l).loss_sum
    both = sppo_loss(torch.cat([w, losing]), 10 * (torch.cat([rate_w, rate_l]) - 0.5)).loss_sum
    torch.testing.assert_close(pair, both / 2)


@pytest.mark.parametrize(("eta", "tau"), [(0.2, 0.05), (0.2, 0.2)])
def test_inpo_with_a_reference_policy(eta, tau):
    # The paper's h from whole log-probs, which the log-ratios must reproduce.
    theta, pi_t, ref = t(-3.0, -4.0), t(-3.5, -3.9), t(-2.0, -5.0)
    h = (theta[0] - theta[1]) - tau / eta * (ref[0] - ref[1]) - (eta - tau) / eta * (pi_t[0] - pi_t[1])
    s, u = theta - pi_t, pi_t - ref
    loss = pairwise_loss(
        s[:1],
        s[1:],
        "inpo",
        eta=eta,
        ref_log_ratio_w=u[:1],
        ref_log_ratio_l=u[1:],
        ref_coef=tau / eta,
    ).loss_sum
    torch.testing.assert_close(loss, (h - 1 / (2 * eta)) ** 2)


def test_dpo_does_not_overflow():
    w = torch.tensor([-2000.0], requires_grad=True)
    loss = pairwise_loss(w, torch.tensor([2000.0]), "dpo", beta=1.0).loss_sum
    loss.backward()
    assert (loss.item(), w.grad.item()) == (4000, -1)


def test_targets_and_weights_are_detached():
    rate, weight = t(0.7).requires_grad_(), t(1.0).requires_grad_()
    w = t(0.1).requires_grad_()
    sums = pairwise_loss(w, t(0.0), "sppo", eta=1.0, win_rate_w=rate, win_rate_l=rate, weight=weight)
    sums.loss_sum.backward()
    assert rate.grad is None and weight.grad is None and w.grad is not None
    assert not any(x.requires_grad for x in sums.metrics.values())


ONE = torch.tensor([0.5])


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("kto", {}, "sppo, sppo_single, sppo_hard, dpo, spin, ipo, rebel, inpo"),
        ("dpo", {}, "beta: missing for kind 'dpo'"),
        ("spin", {"eta": 1.0}, "beta: missing"),
        ("ipo", {"beta": 0.0}, "beta: must be"),
        ("sppo_hard", {}, "eta: missing"),
        ("sppo_hard", {"eta": -1.0}, "eta: must be"),
        ("sppo", {"eta": 1.0, "win_rate_w": ONE}, "win_rate_l: missing"),
        ("sppo", {"eta": 1.0, "win_rate_w": ONE + 1, "win_rate_l": ONE}, r"win_rate_w: .*outside \[0, 1\]"),
        ("sppo", {"eta": 1.0, "win_rate_w": ONE[:, None], "win_rate_l": ONE}, "win_rate_w: shape"),
        ("sppo_single", {"eta": 1.0}, "preference: missing"),
        ("sppo_single", {"eta": 1.0, "preference": -ONE}, r"preference: .*outside \[0, 1\]"),
        ("rebel", {"eta": 1.0, "reward_w": ONE}, "reward_l: missing"),
        ("rebel", {"eta": 1.0, "reward_w": ONE * math.nan, "reward_l": ONE}, "reward_w: 1 non-finite"),
        ("inpo", {"eta": 1.0, "ref_coef": 0.5}, "ref_log_ratio_w: missing"),
        ("inpo", {"eta": 1.0, "ref_coef": 1.5}, "ref_coef: must be"),
        ("dpo", {"beta": 1.0, "weight": -ONE}, "weight: 1 negative"),
        ("dpo", {"beta": 1.0, "valid": torch.ones(2)}, "valid: shape"),
    ],
)
def test_raises(kind, options, message):
    with pytest.raises(ValueError, match=message):
        pairwise_loss(ONE, ONE, kind, **options)


def test_raises_on_log_ratios():
    with pytest.raises(ValueError, match="log_ratio_l: shape"):
        pairwise_loss(torch.zeros(2), torch.zeros(2, 1), "dpo", beta=1.0)
    with pytest.raises(ValueError, match="log_ratio_w: 1 non-finite"):
        pairwise_loss(ONE * math.nan, ONE, "dpo", beta=1.0)
    with pytest.raises(ValueError, match="log_ratio_l: 1 non-finite"):
        pairwise_loss(ONE, ONE * math.inf, "dpo", beta=1.0)
    with pytest.raises(ValueError, match="log_ratio_w: expected shape"):
        pairwise_loss(torch.zeros(1, 1), torch.zeros(1, 1), "dpo", beta=1.0)
