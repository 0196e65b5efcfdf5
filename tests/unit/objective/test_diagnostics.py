"""Diagnostics: reduced over any split they equal numpy on the whole batch."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sppo_megatron.objective import (
    degenerate_group_sums,
    finalize_diagnostics,
    regression_diagnostics,
    sequence_log_ratio,
    token_diagnostics,
)
from sppo_megatron.objective.pairs import Pairs

TAU = 0.25
NAMES = {
    "log_ratio_mean", "log_ratio_std", "log_ratio_min", "log_ratio_max", "log_ratio_abs_max", "log_ratio_per_token",
    "target_mean", "target_std", "residual_rms", "r_squared", "sign_agreement", "implied_reward_mean", "kl_k1", "kl_k2",
    "kl_k3", "entropy", "reward_mean", "degenerate_group_share", "truncation_rate", "response_length_mean",
    "rollout_log_prob_diff_mean", "rollout_log_prob_diff_max", "rollout_log_prob_diff_sequence_mean", "importance_ess",
}  # fmt: skip


def random_batch(seed: int, rows: int = 8, tokens: int = 5) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(seed)
    batch = {name: -3 * rng.random((rows, tokens)) for name in ("lp", "old", "rollout", "entropy")}
    mask = rng.random((rows, tokens)) < 0.6
    mask[0], mask[1], mask[-1] = True, True, False
    for name, x in batch.items():
        batch[name] = np.where(mask, x, np.nan)
    batch |= {"mask": mask, "target": rng.normal(size=rows), "reward": rng.random(rows), "weight": rng.random(rows)}
    batch["target"][1] = 0.0
    batch["truncated"] = rng.random(rows) < 0.4
    batch["ids"] = np.arange(rows) // 2
    return {name: torch.from_numpy(np.asarray(x)) for name, x in batch.items()}


def diagnostics(b: dict[str, torch.Tensor]) -> tuple[dict, dict]:
    s, length = sequence_log_ratio(b["lp"], b["old"], b["mask"])
    rollout_log_ratio, _ = sequence_log_ratio(b["old"], b["rollout"], b["mask"])
    sums, maxima = regression_diagnostics(
        s,
        b["target"],
        length,
        tau=TAU,
        rewards=b["reward"],
        win_rate=b["reward"],
        truncated=b["truncated"],
        importance_weight=b["weight"],
        rollout_log_ratio=rollout_log_ratio,
    )
    token_sums, token_maxima = token_diagnostics(
        b["lp"], b["old"], b["mask"], entropy=b["entropy"], rollout_log_probs=b["rollout"]
    )
    return sums | token_sums, maxima | token_maxima


def with_numpy(b: dict[str, torch.Tensor]) -> dict[str, float]:
    a = {name: x.numpy() for name, x in b.items()}
    mask, keep = a["mask"], a["mask"].any(axis=1)
    per_token = np.nan_to_num(a["lp"] - a["old"])
    gap = np.nan_to_num(a["old"] - a["rollout"])
    s, delta = per_token.sum(axis=1)[keep], a["target"][keep]
    w, k3 = a["weight"][keep], (np.exp(per_token) - 1 - per_token)[mask]
    signed = delta != 0
    return {
        "log_ratio_mean": s.mean(),
        "log_ratio_std": s.std(),
        "log_ratio_min": s.min(),
        "log_ratio_max": s.max(),
        "log_ratio_abs_max": np.abs(s).max(),
        "log_ratio_per_token": per_token[mask].mean(),
        "target_mean": delta.mean(),
        "target_std": delta.std(),
        "residual_rms": np.sqrt(((s - delta) ** 2).mean()),
        "r_squared": 1 - ((s - delta) ** 2).sum() / ((delta - delta.mean()) ** 2).sum(),
        "sign_agreement": (np.sign(s) == np.sign(delta))[signed].mean(),
        "implied_reward_mean": TAU * s.mean(),
        "kl_k1": (-s).mean(),
        "kl_k2": (s**2 / 2).mean(),
        "kl_k3": k3.mean(),
        "entropy": a["entropy"][mask].mean(),
        "reward_mean": a["reward"][keep].mean(),
        "win_rate_mean": a["reward"][keep].mean(),
        "truncation_rate": a["truncated"][keep].mean(),
        "response_length_mean": mask.sum(axis=1)[keep].mean(),
        "rollout_log_prob_diff_mean": np.abs(gap[mask]).mean(),
        "rollout_log_prob_diff_max": np.abs(gap[mask]).max(),
        "rollout_log_prob_diff_sequence_mean": np.abs(gap.sum(axis=1)[keep]).mean(),
        "importance_ess": w.sum() ** 2 / (w**2).sum(),
        "sequences": keep.sum(),
        "invalid_sequences": (~keep).sum(),
    }


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), cut=st.integers(0, 8))
def test_any_split_equals_numpy_on_the_whole(seed, cut):
    batch = random_batch(seed)
    parts = [diagnostics({k: v[rows] for k, v in batch.items()}) for rows in (slice(0, cut), slice(cut, None))]
    sums = {name: parts[0][0][name] + parts[1][0][name] for name in parts[0][0]}
    maxima = {name: torch.maximum(parts[0][1][name], parts[1][1][name]) for name in parts[0][1]}
    assert all(x.ndim == 0 and not x.requires_grad for x in (sums | maxima).values())
    metrics, expected = finalize_diagnostics(sums, maxima), with_numpy(batch)
    assert metrics.keys() == expected.keys()
    assert metrics == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_every_named_metric_is_there():
    batch = random_batch(0)
    sums, maxima = diagnostics(batch)
    metrics = finalize_diagnostics(sums | degenerate_group_sums(batch["reward"], batch["ids"]), maxima)
    assert metrics.keys() >= NAMES


def test_worked_row():
    sums, maxima = regression_diagnostics(torch.tensor([0.6, 0.1]), torch.tensor([1.0, -1.0]), torch.tensor([3, 2]))
    metrics = finalize_diagnostics(sums, maxima)
    expected = {"log_ratio_mean": 0.35, "log_ratio_std": 0.25, "log_ratio_per_token": 0.14, "log_ratio_abs_max": 0.6}
    expected |= {"r_squared": 1 - 1.37 / 2, "residual_rms": math.sqrt(0.685), "sign_agreement": 0.5, "kl_k1": -0.35}
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, rel=1e-6)


def test_a_single_row_has_every_metric():
    sums, maxima = regression_diagnostics(
        torch.tensor([0.6]), torch.tensor([1.0]), torch.tensor([3]), importance_weight=torch.tensor([0.5])
    )
    metrics = finalize_diagnostics(sums, maxima)
    expected = {"sequences": 1, "log_ratio_mean": 0.6, "log_ratio_std": 0, "residual_rms": 0.4, "importance_ess": 1}
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, rel=1e-6)


def test_abs_max_is_of_the_most_negative_too():
    sums, maxima = regression_diagnostics(torch.tensor([0.6, -7.0]), torch.zeros(2), torch.ones(2))
    assert finalize_diagnostics(sums, maxima)["log_ratio_abs_max"] == 7


def test_no_valid_rows_and_no_spread():
    nothing = finalize_diagnostics(*regression_diagnostics(torch.ones(2), torch.ones(2), torch.zeros(2)))
    assert nothing == {"sequences": 0, "invalid_sequences": 2, "log_ratio_abs_max": 0}
    assert finalize_diagnostics({}, {}) == {"log_ratio_abs_max": 0}
    assert finalize_diagnostics(*regression_diagnostics(*(torch.ones(0),) * 3))["sequences"] == 0
    same = finalize_diagnostics(*regression_diagnostics(torch.zeros(3), torch.full((3,), 500.1), torch.ones(3)))
    assert "r_squared" not in same and same["target_std"] == 0
    json.dumps(same | nothing, allow_nan=False)


def test_small_spread_on_a_large_mean():
    # η = 1e3: fp32 moments would lose the spread.
    target = 500 + torch.tensor([0.0, 0.01, 0.02, 0.03])
    metrics = finalize_diagnostics(*regression_diagnostics(torch.zeros(4), target, torch.ones(4)))
    assert metrics["target_std"] == pytest.approx(target.double().std(correction=0).item(), rel=1e-6)


def test_perfect_fit_and_on_policy():
    target = torch.tensor([1.0, -2.0, 0.5])
    metrics = finalize_diagnostics(*regression_diagnostics(target, target, torch.ones(3)))
    assert (metrics["r_squared"], metrics["sign_agreement"]) == (1, 1)
    lp = -torch.rand(3, 4)
    on_policy = finalize_diagnostics(*token_diagnostics(lp, lp, torch.ones(3, 4), rollout_log_probs=lp))
    assert (on_policy["kl_k3"], on_policy["rollout_log_prob_diff_max"]) == (0, 0)


def test_k3_does_not_overflow_and_packed_tokens_work():
    sums, _ = token_diagnostics(torch.zeros(2), torch.tensor([-1e4, 0.0]), torch.ones(2))
    assert math.isfinite(float(sums["k3_sum"])) and sums["k3_sum"] > 1e8


def test_degenerate_groups():
    rewards, ids = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 0.3]), torch.tensor([5, -2, 5, -2, 9, 9])
    assert finalize_diagnostics(degenerate_group_sums(rewards, ids), {})["degenerate_group_share"] == pytest.approx(
        1 / 3
    )
    with pytest.raises(ValueError, match="group_ids: missing"):
        degenerate_group_sums(rewards, None)


def test_pairs():
    sums = {"pairs": 4.0, "pair_margin_sum": 2.0, "pair_correct_sum": 3.0}
    metrics = finalize_diagnostics(sums, {}, Pairs.means)
    assert (metrics["pair_margin_mean"], metrics["pair_accuracy"]) == (0.5, 0.75)


def test_raises():
    two = torch.ones(2)
    with pytest.raises(ValueError, match="target: shape"):
        regression_diagnostics(two, torch.ones(2, 1), two)
    with pytest.raises(ValueError, match="reward: shape"):
        regression_diagnostics(two, two, two, rewards=torch.ones(2, 1))
    with pytest.raises(ValueError, match="tau: must be"):
        regression_diagnostics(two, two, two, tau=0.0)
    with pytest.raises(ValueError, match="entropy: shape"):
        token_diagnostics(two, two, two, entropy=torch.ones(1))
