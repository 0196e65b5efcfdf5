"""Win rates and preferences against worked numbers and loops."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sppo_megatron.objective import check_preference, preference_from_scores, win_rates

P = torch.tensor([[[0.5, 0.8, 0.9], [0.2, 0.5, 0.6], [0.1, 0.4, 0.5]]])
FAST = settings(max_examples=40, deadline=None)


def random_preference(seed: int, groups: int, k: int) -> torch.Tensor:
    """Complementary and, being random, hardly ever transitive."""
    p = torch.rand(groups, k, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    upper = torch.triu(p, 1)
    return upper + torch.tril(1 - upper.transpose(1, 2), -1) + 0.5 * torch.eye(k, dtype=torch.float64)


def test_worked_numbers():
    torch.testing.assert_close(win_rates(P), torch.tensor([[0.73333333, 0.43333333, 0.33333333]]))
    torch.testing.assert_close(win_rates(P, "leave_one_out"), torch.tensor([[0.85, 0.4, 0.25]]))


@FAST
@given(seed=st.integers(0, 10**6), k=st.integers(2, 6))
def test_estimators_equal_the_loop_and_each_other(seed, k):
    p = random_preference(seed, 2, k)
    include, leave = win_rates(p), win_rates(p, "leave_one_out")
    for g in range(2):
        for i in range(k):
            others = [float(p[g, i, j]) for j in range(k) if j != i]
            assert leave[g, i].item() == pytest.approx(math.fsum(others) / (k - 1))
            assert include[g, i].item() == pytest.approx((math.fsum(others) + 0.5) / k)
    torch.testing.assert_close(include - 0.5, (k - 1) / k * (leave - 0.5))
    torch.testing.assert_close(include.mean(dim=1), torch.full((2,), 0.5, dtype=torch.float64))


@FAST
@given(seed=st.integers(0, 10**6), k=st.integers(2, 6))
def test_permuting_responses_permutes_win_rates(seed, k):
    p = random_preference(seed, 1, k)
    order = torch.randperm(k, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(win_rates(p[:, order][:, :, order]), win_rates(p)[:, order])


@FAST
@given(scores=st.lists(st.floats(-30, 30), min_size=1, max_size=6), shift=st.floats(-5, 5))
def test_preference_from_scores(scores, shift):
    s = torch.tensor([scores], dtype=torch.float64)
    p = preference_from_scores(s)
    check_preference(p)
    for i, a in enumerate(scores):
        for j, b in enumerate(scores):
            assert p[0, i, j].item() == pytest.approx(1 / (1 + math.exp(b - a)))
    torch.testing.assert_close(preference_from_scores(s + shift), p)


def test_shapes_dtypes_and_detachment():
    scores = torch.zeros(2, 3, dtype=torch.bfloat16, requires_grad=True)
    p = preference_from_scores(scores)
    assert p.shape == (2, 3, 3) and p.dtype == torch.float32 and not p.requires_grad
    rates = win_rates(P.clone().requires_grad_())
    assert rates.shape == (1, 3) and not rates.requires_grad
    assert win_rates(torch.full((1, 1, 1), 0.5)).tolist() == [[0.5]]


@pytest.mark.parametrize(
    ("preference", "estimator", "message"),
    [
        (P, "mean", "include_self, leave_one_out"),
        (P[0], "include_self", r"preference: expected shape \[G, K, K\]"),
        (P[:, :2], "include_self", r"preference: expected shape \[G, K, K\], got \[1, 2, 3\]"),
        (torch.full((1, 1, 1), 0.5), "leave_one_out", "at least 2 responses"),
        (P + 0.3, "include_self", r"preference: .*outside \[0, 1\]"),
        (P - 0.3, "leave_one_out", r"preference: .*outside \[0, 1\]"),
        (P * math.nan, "include_self", "preference: 9 non-finite"),
        (P * 0.9, "include_self", r"P \+ P\^T - 1"),
    ],
)
def test_win_rates_raises(preference, estimator, message):
    with pytest.raises(ValueError, match=message):
        win_rates(preference, estimator)


def test_tolerance_and_other_raises():
    slightly_off = P + torch.tensor([[0, 1e-3, 0], [0, 0, 0], [0, 0, 0]])
    with pytest.raises(ValueError, match="tolerance"):
        check_preference(slightly_off)
    check_preference(slightly_off, tolerance=1e-2)
    with pytest.raises(ValueError, match=r"preference: expected shape \[..., K, K\]"):
        check_preference(torch.ones(3))
    with pytest.raises(ValueError, match="scores: 1 non-finite"):
        preference_from_scores(torch.tensor([0.0, math.inf]))
    with pytest.raises(ValueError, match="scores: expected"):
        preference_from_scores(torch.tensor(0.0))
