"""Where the objective's minimum lies, on softmax policies over a few arms, derived independently of the package.

π_t has probabilities that are multiples of 1/n, so that a group of n rows holds every arm in exactly π_t's proportions
and group means are expectations under π_t.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.special import lambertw

from sppo_megatron.objective import group_baseline, regression_target, sequence_log_ratio, sppo_loss

ARMS = torch.tensor([0, 0, 0, 1, 1, 2])  # π_t = (1/2, 1/3, 1/6)
PI_T = np.array([1 / 2, 1 / 3, 1 / 6])
WIN = np.array([0.35, 0.9, 0.6])
ETA = 2.0


def batch_loss(logits: torch.Tensor, kind: str) -> torch.Tensor:
    old = torch.tensor(np.log(PI_T))[ARMS]
    rewards = torch.tensor(WIN)[ARMS]
    baseline = group_baseline(rewards, torch.zeros(len(ARMS), dtype=torch.long), kind, tau=1 / ETA)
    s, _ = sequence_log_ratio(logits.log_softmax(0)[ARMS, None], old[:, None], torch.ones(len(ARMS), 1))
    sums = sppo_loss(s, regression_target(rewards, baseline, ETA))
    return sums.loss_sum / sums.weight_sum


def descend(kind: str) -> np.ndarray:
    logits = torch.tensor(np.log(PI_T), requires_grad=True)
    for _ in range(400):
        (gradient,) = torch.autograd.grad(batch_loss(logits, kind), logits)
        with torch.no_grad():
            logits -= 1.5 * gradient
    assert gradient.abs().max() < 1e-10
    return logits.detach().softmax(0).numpy()


def multiplicative_weights() -> np.ndarray:
    weights = PI_T * np.exp(ETA * WIN)
    return weights / weights.sum()


def normalised_minimiser(delta: np.ndarray) -> np.ndarray:
    """argmin over policies of Σ π_t (u − δ)² with u = log π/π_t and Σ π_t e^u = 1.

    The Lagrangian's condition is u + c e^u = δ, so u = δ − W(c e^δ), with one multiplier c that normalises.
    """

    def policy(c):
        return PI_T * np.exp(delta - lambertw(c * np.exp(delta)).real)

    lowest = -np.exp(-1 - delta.max()) * 0.999999
    return policy(brentq(lambda c: policy(c).sum() - 1, lowest, 100, xtol=1e-15))


def test_log_partition_is_zero_exactly_at_the_multiplicative_weights_update():
    update = torch.tensor(np.log(multiplicative_weights()), requires_grad=True)
    loss = batch_loss(update, "log_partition")
    loss.backward()
    assert loss.item() < 1e-28
    assert update.grad.abs().max() < 1e-14
    for kind in ("constant", "mean"):
        assert batch_loss(update, kind).item() > 1e-3


def test_descent_on_log_partition_reaches_the_update():
    np.testing.assert_allclose(descend("log_partition"), multiplicative_weights(), atol=1e-10)


@pytest.mark.parametrize(("kind", "baseline"), [("constant", 0.5), ("mean", float(PI_T @ WIN))])
def test_descent_on_other_baselines_reaches_their_own_minimiser(kind, baseline):
    expected = normalised_minimiser(ETA * (WIN - baseline))
    assert expected.sum() == pytest.approx(1)
    np.testing.assert_allclose(descend(kind), expected, atol=1e-9)
    assert np.abs(expected - multiplicative_weights()).max() > 1e-3


def test_one_on_policy_step_is_reinforce():
    logits = torch.tensor(np.log(PI_T), requires_grad=True)
    (gradient,) = torch.autograd.grad(batch_loss(logits, "mean"), logits)
    advantage = ETA * (WIN - PI_T @ WIN)
    # E[δ ∇ log softmax_a] = π_a (δ_a − E δ), and E δ = 0 here.
    np.testing.assert_allclose(gradient.numpy(), -2 * PI_T * advantage, atol=1e-14)
