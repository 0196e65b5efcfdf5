"""Wilson's interval: against its defining equation, published numbers, and what it covers."""

from __future__ import annotations

import numpy as np
import pytest

from sppo_megatron.objective import wilson_interval


@pytest.mark.parametrize(
    ("mean", "count", "low", "high"),
    [(0.1, 10, 0.0179, 0.4042), (0.5, 100, 0.4038, 0.5962), (0.0, 10, 0.0, 0.2775), (1.0, 20, 0.8389, 1.0)],
)
def test_textbook_values(mean, count, low, high):
    assert wilson_interval(mean, count) == pytest.approx((low, high), abs=1e-4)


@pytest.mark.parametrize("count", [1, 7, 300])
@pytest.mark.parametrize("mean", [0.0, 0.2, 0.5, 0.93, 1.0])
def test_the_ends_are_the_p_that_the_score_test_just_accepts(mean, count):
    """|mean − p| = z·sqrt(p(1 − p)/n) at both ends; at p = 0 and 1 the equation's root is the bound itself."""
    for p in wilson_interval(mean, count):
        assert abs(mean - p) == pytest.approx(1.959964 * (p * (1 - p) / count) ** 0.5, abs=1e-6)


@pytest.mark.parametrize(
    ("outcomes", "least"),
    [
        (lambda rng: rng.binomial(1, 0.8, (4000, 40)), 0.92),  # 95% on average over p and n; 92.6% at these
        (lambda rng: rng.beta(2, 0.5, (4000, 40)), 0.95),  # less variance than zeros and ones of the same mean
    ],
    ids=["wins", "probabilities"],
)
def test_it_covers_the_truth(outcomes, least):
    means = outcomes(np.random.default_rng(0)).mean(axis=1)
    intervals = [wilson_interval(float(mean), 40) for mean in means]
    assert np.mean([low <= 0.8 <= high for low, high in intervals]) > least


@pytest.mark.parametrize(("mean", "count"), [(-0.1, 10), (1.1, 10), (float("nan"), 10), (0.5, 0)])
def test_refuses(mean, count):
    with pytest.raises(ValueError, match="must be"):
        wilson_interval(mean, count)
