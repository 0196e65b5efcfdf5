"""Truncated importance weights."""

from __future__ import annotations

import math

import pytest
import torch

from sppo_megatron.objective import rollout_importance_weights, truncated_importance_weight

OLD = torch.tensor([[-1.0, -2.0, math.nan], [-1.0, -1.0, -1.0], [math.nan] * 3], dtype=torch.float64)
ROLLOUT = torch.tensor([[-1.5, -1.2, math.inf], [-1.0, -1.5, -3.0], [-math.inf] * 3], dtype=torch.float64)
MASK = torch.tensor([[1, 1, 0], [1, 1, 1], [0, 0, 0]])


def test_sequence_level():
    weights = rollout_importance_weights(OLD, ROLLOUT, MASK, level="sequence", cap=2.0)
    # The ratios' logs: 0.5 − 0.8, and 0 + 0.5 + 2 which is cut at the cap.
    torch.testing.assert_close(weights, torch.tensor([math.exp(-0.3), 2.0, 1.0], dtype=torch.float64))


def test_token_level():
    weights = rollout_importance_weights(OLD, ROLLOUT, MASK, level="token", cap=2.0)
    expected = [[math.exp(0.5), math.exp(-0.8), 0], [1, math.exp(0.5), 2], [0, 0, 0]]
    torch.testing.assert_close(weights, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("level", ["sequence", "token"])
def test_equal_policies_weigh_one_and_nothing_is_differentiated(level):
    old = OLD.clone().requires_grad_()
    rollout = OLD.clone().requires_grad_()
    weights = rollout_importance_weights(old, rollout, MASK, level, 2.0)
    assert not weights.requires_grad
    assert set(weights.flatten().tolist()) <= {0.0, 1.0} and weights.max() == 1
    assert not truncated_importance_weight(torch.zeros(1, requires_grad=True), 2.0).requires_grad


def test_validate_false_skips_the_value_checks():
    nothing_known = torch.full((1, 2), math.nan)
    assert rollout_importance_weights(nothing_known, nothing_known, torch.ones(1, 2), validate=False).isnan().all()


def test_log_weight_is_bounded():
    log_weight = torch.tensor([-1e4, -5.0, 0.0, 1e4])
    weights = truncated_importance_weight(log_weight, cap=1e30, log_bound=20.0)
    torch.testing.assert_close(weights, torch.tensor([-20.0, -5.0, 0.0, 20.0]).exp())
    assert truncated_importance_weight(log_weight, cap=3.0)[3].item() == pytest.approx(3.0)
    long = torch.full((1, 4096), -1.0)
    assert rollout_importance_weights(long, long + 0.5, torch.ones(1, 4096)).item() == pytest.approx(math.exp(-20))


def test_half_precision_is_fp32_inside():
    old = torch.full((1, 4096), -1.0, dtype=torch.bfloat16)
    rollout = torch.full((1, 4096), -0.99609375, dtype=torch.bfloat16)
    weights = rollout_importance_weights(old, rollout, torch.ones(1, 4096))
    assert weights.dtype == torch.float32 and weights.item() == pytest.approx(math.exp(-16), rel=1e-5)
    log_weight = torch.tensor([-0.5], dtype=torch.bfloat16)
    assert truncated_importance_weight(log_weight, 2.0).item() == pytest.approx(math.exp(-0.5))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"level": "group"}, "level: .*sequence, token"),
        ({"cap": 0.0}, "cap: must be"),
        ({"log_bound": -1.0}, "log_bound: must be"),
        ({"rollout_log_probs": torch.zeros(3, 1)}, "rollout_log_probs: shape"),
        ({"response_mask": torch.ones(3)}, "response_mask: shape"),
        ({"response_mask": torch.ones(3, 3)}, "non-finite"),
    ],
)
@pytest.mark.parametrize("level", ["sequence", "token"])
def test_raises(changes, message, level):
    given = {"old_log_probs": OLD, "rollout_log_probs": ROLLOUT, "response_mask": MASK, "level": level}
    with pytest.raises(ValueError, match=message):
        rollout_importance_weights(**(given | changes))
