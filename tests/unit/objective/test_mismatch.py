from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sppo_megatron.objective import rollout_mismatch


def test_by_hand():
    """Three responses of 2, 0 and 1 tokens; d = 0.3, −0.1 and −1."""
    old = torch.tensor([-1.0, -2.0, -1.5])
    rollout = torch.tensor([-1.3, -1.9, -0.5])
    found = rollout_mismatch(old, rollout, [2, 0, 1], token_bound=0.5)
    assert found.mean == pytest.approx(1.4 / 3)
    assert found.max == pytest.approx(1.0)
    assert found.share_over == pytest.approx(1 / 3)
    assert found.k3 == pytest.approx(sum(math.exp(d) - 1 - d for d in (0.3, -0.1, -1.0)) / 3)
    np.testing.assert_allclose(found.sequence_sum, [0.2, 0, 1], atol=1e-6)
    np.testing.assert_allclose(found.sequence_mean, [0.2, 0, 1], atol=1e-6)


def test_k3_estimates_the_divergence():
    """Mean over samples of the first distribution, against Σ p (log p − log q)."""
    torch.manual_seed(0)
    p, q = (torch.log_softmax(torch.randn(50, dtype=torch.float64), 0) for _ in range(2))
    draws = torch.multinomial(p.exp(), 400_000, replacement=True)
    found = rollout_mismatch(q[draws], p[draws], [len(draws)], token_bound=1)
    assert found.k3 == pytest.approx(float((p.exp() * (p - q)).sum()), rel=0.02)


def test_nothing():
    found = rollout_mismatch(torch.empty(0), torch.empty(0), [0, 0], token_bound=1)
    assert (found.mean, found.max, found.k3, found.share_over) == (0, 0, 0, 0)
    assert found.sequence_sum.tolist() == [0, 0]


def test_a_broken_engine_gives_no_infinity():
    found = rollout_mismatch(torch.tensor([0.0]), torch.tensor([-1000.0]), [1], token_bound=1)
    assert math.isfinite(found.k3) and found.max == 1000


def test_what_does_not_fit():
    with pytest.raises(ValueError, match="rollout_log_probs"):
        rollout_mismatch(torch.zeros(3), torch.zeros(2), [3], token_bound=1)
    with pytest.raises(ValueError, match="add up to 2"):
        rollout_mismatch(torch.zeros(3), torch.zeros(3), [2], token_bound=1)


@pytest.mark.parametrize("masked", [False, True])
def test_many_responses_against_the_definition(masked):
    """More tokens than are worked on at a time; numpy in float64 over each response."""
    rng = np.random.default_rng(1)
    lengths = [0, *rng.integers(0, 900, 100).tolist(), 40_000, 0]
    old, rollout = rng.normal(size=(2, sum(lengths))).astype(np.float32) * 0.3
    mask = rng.random(sum(lengths)) < 0.5 if masked else np.ones(sum(lengths), bool)
    found = rollout_mismatch(
        torch.from_numpy(old), torch.from_numpy(rollout), lengths, 0.5, torch.from_numpy(mask) if masked else None
    )
    d = (old.astype(np.float64) - rollout)[mask]
    assert (found.mean, found.max) == (pytest.approx(np.abs(d).mean()), np.abs(d).max())
    assert found.share_over == pytest.approx((np.abs(d) > 0.5).mean())
    assert found.k3 == pytest.approx((np.exp(d) - 1 - d).mean())
    parts = np.split(np.where(mask, old.astype(np.float64) - rollout, 0), np.cumsum(lengths)[:-1])
    counts = [part.sum() for part in np.split(mask, np.cumsum(lengths)[:-1])]
    np.testing.assert_allclose(found.sequence_sum, [abs(part.sum()) for part in parts], atol=1e-9)
    expected = [np.abs(part).sum() / max(1, count) for part, count in zip(parts, counts, strict=True)]
    np.testing.assert_allclose(found.sequence_mean, expected, atol=1e-12)
