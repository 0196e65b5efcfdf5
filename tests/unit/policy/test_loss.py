"""The configured loss, and what a head that computes it is given: both must be the same number."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from sppo_megatron.config import ObjectiveConfig
from sppo_megatron.policy.loss import build_loss, regression_terms


def batch():
    return SimpleNamespace(
        lengths=torch.tensor([3.0, 0.0, 7.0]),
        target=torch.tensor([0.5, float("nan"), -1.0]),
        weight=torch.tensor([0.25, float("inf"), 1.5]),  # sequence weight times importance weight
    )


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        (ObjectiveConfig(eta=2.0), 0.25 * 0.25 + 1.5 * 4.0),
        (ObjectiveConfig(eta=4.0, loss_scale="kimi"), (0.25 * 0.25 + 1.5 * 4.0) / 8),
        (ObjectiveConfig(eta=None, tau=0.25, loss_scale="kimi"), (0.25 * 0.25 + 1.5 * 4.0) / 8),
    ],
)
def test_terms_give_the_loss(objective, expected):
    s = torch.tensor([1.0, 0.0, 1.0])
    assert build_loss(objective)(s, batch()).loss_sum.item() == pytest.approx(expected)
    target, coefficient = regression_terms(objective)(batch())
    assert (coefficient * (s - target).square()).sum().item() == pytest.approx(expected)
    assert coefficient[1] == 0


def test_pairs_have_no_terms():
    assert regression_terms(ObjectiveConfig(pairwise="sppo_hard")) is None
