"""Objectives as objects: the loss that a micro-batch gets, and what the head that computes it is given."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from sppo_megatron.objective.registry import build_objective


def batch(lengths, **columns):
    return SimpleNamespace(lengths=torch.tensor(lengths), columns=columns)


def singles():
    return batch(
        [3.0, 0.0, 7.0],
        target=torch.tensor([0.5, float("nan"), -1.0]),
        weight=torch.tensor([0.25, float("inf"), 1.5]),  # sequence weight times importance weight
    )


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"eta": 2.0}, 0.25 * 0.25 + 1.5 * 4.0),
        ({"eta": 4.0, "loss_scale": "kimi"}, (0.25 * 0.25 + 1.5 * 4.0) / 8),
        ({"eta": None, "tau": 0.25, "loss_scale": "kimi"}, (0.25 * 0.25 + 1.5 * 4.0) / 8),
    ],
)
def test_terms_give_the_loss(keys, expected):
    s, objective = torch.tensor([1.0, 0.0, 1.0]), build_objective(keys)
    assert objective.is_regression
    assert objective.loss(s, singles()).loss_sum.item() == pytest.approx(expected)
    target, coefficient = objective.regression(singles())
    assert (coefficient * (s - target).square()).sum().item() == pytest.approx(expected)
    assert coefficient[1] == 0


def test_pairs_have_no_terms():
    assert not build_objective({"pairwise": "sppo_hard"}).is_regression


@pytest.mark.parametrize(
    ("keys", "loss_of_a_pair"),
    [
        (
            {"eta": 2.0, "pairwise": "sppo"},
            lambda x: ((x.s_w - 2 * (x.win_rate_w - 0.5)) ** 2 + (x.s_l - 2 * (x.win_rate_l - 0.5)) ** 2) / 2,
        ),
        (
            {"eta": None, "tau": 0.5, "pairwise": "sppo_single"},
            lambda x: ((x.s_w - 2 * (x.preference_w - 0.5)) ** 2 + (x.s_l + 2 * (x.preference_w - 0.5)) ** 2) / 2,
        ),
        (
            {"eta": 2.0, "beta": 0.1, "pairwise": "dpo"},
            lambda x: math.log(1 + math.exp(-0.1 * (x.s_w - x.s_l))),
        ),
        (
            {"eta": 2.0, "pairwise": "rebel"},
            lambda x: ((x.s_w - x.s_l) / 2 - (x.reward_w - x.reward_l)) ** 2,
        ),
        (
            {"eta": 2.0, "pairwise": "inpo", "ref_coef": 0.3},
            lambda x: (x.s_w - x.s_l + 0.3 * (x.ref_log_ratio_w - x.ref_log_ratio_l) - 0.25) ** 2,
        ),
    ],
    ids=lambda value: value["pairwise"] if isinstance(value, dict) else "",
)
def test_pairs_are_even_and_odd_sequences(keys, loss_of_a_pair):
    """Four pairs: the second one lacks a winner, the third one a loser. Weights of both multiply the loss."""
    columns = ("win_rate", "preference", "reward", "ref_log_ratio", "weight")
    values = dict(zip(columns, torch.rand(len(columns), 8, generator=torch.Generator().manual_seed(0)), strict=True))
    pairs = batch([3, 1, 0, 4, 5, 0, 1, 6.0], **values)
    s = torch.linspace(-1, 1.3, 8).square()
    expected = 0.0
    for winner in (0, 6):
        both = {"w": winner, "l": winner + 1}
        pair = {
            f"{name}_{end}": float(x[place]) for name, x in (*values.items(), ("s", s)) for end, place in both.items()
        }
        expected += pair["weight_w"] * pair["weight_l"] * loss_of_a_pair(SimpleNamespace(**pair))
    sums = build_objective(keys).loss(s, pairs)
    assert sums.loss_sum.item() == pytest.approx(expected, rel=1e-5)
    assert sums.weight_sum == 2 and sums.metrics["invalid_pairs"] == 2
