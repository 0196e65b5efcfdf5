"""Warnings about sustained values: measured on log-ratios and targets by the trainer's own diagnostics."""

import re

import pytest
import torch

from sppo_megatron.objective import finalize_diagnostics
from sppo_megatron.objective.diagnostics import regression_diagnostics
from sppo_report.findings import find_warnings
from sppo_report.findings.sustained import (
    find_sustained,
    log_ratio_rms,
    loss_growth,
    mismatch_to_target,
)


def logged(log_ratio, target, rollout_log_ratio=None):
    lengths = torch.ones_like(log_ratio)
    return finalize_diagnostics(
        *regression_diagnostics(log_ratio, target, lengths, rollout_log_ratio=rollout_log_ratio)
    )


@pytest.fixture
def responses():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(64, generator=generator, dtype=torch.float64), generator


@pytest.mark.parametrize("mean", [0.0, 1.5])
def test_measures_are_what_they_say(responses, mean):
    target, generator = responses
    target = target + mean  # a constant baseline leaves the targets off centre
    log_ratio = torch.randn(64, generator=generator, dtype=torch.float64)
    mismatch = torch.randn(64, generator=generator, dtype=torch.float64)
    line = logged(log_ratio, target, mismatch)
    assert log_ratio_rms(line) == pytest.approx(log_ratio.square().mean().sqrt().item())
    assert log_ratio_rms(line) >= log_ratio.abs().mean().item()
    growth = (log_ratio - target).square().sum() / target.square().sum() - 1
    assert loss_growth(line) == pytest.approx(growth.item())
    assert mismatch_to_target(line) == pytest.approx((mismatch.abs().mean() / target.std(unbiased=False)).item())
    nothing = logged(torch.zeros(64), target.float())
    assert loss_growth(nothing) == pytest.approx(0, abs=1e-6), "no update: no growth, wherever the targets' mean is"


def test_measures_of_lines_without_their_metrics():
    for line in ({}, {"kl_k2": None, "target_std": 0.0, "target_mean": 0.0, "residual_rms": 1.0}):
        assert log_ratio_rms(line) is loss_growth(line) is mismatch_to_target(line) is None


def titles(run):
    return {finding.title: finding for finding in find_sustained(run)}


def test_a_policy_that_overshoots(make_run, responses):
    """Four steps an iteration; s is noise of size 0.8 in iterations 3 to 12, and follows δ in the others."""
    target, generator = responses
    lines = []
    for iteration in range(20):
        for place in range(4):
            noise = torch.randn(64, generator=generator, dtype=torch.float64)
            log_ratio = 0.8 * noise if 3 <= iteration <= 12 else 0.05 * target
            log_ratio = log_ratio * (place > 0)
            values = logged(log_ratio, target)
            lines.append({"step": 4 * iteration + place + 1, "iteration": iteration, **values})
    found = titles(make_run(lines))
    assert set(found) == {"The policy moves too far in an iteration", "Updates make the regression worse"}
    for finding in found.values():
        first, last = map(int, re.search(r"iterations (\d+)–(\d+)", finding.seen).groups())
        assert 0 <= first <= 3 and 12 <= last <= 16
        assert not finding.is_now


QUIET = {"kl_k2": 0.005, "kl_k3": 1e-3, "skipped": 0.0, "truncation_rate": 0.05, "degenerate_group_share": 0.4,
         "rollout_log_prob_diff_mean": 1e-3, "rollout_log_prob_diff_sequence_mean": 0.1, "target_std": 0.5}  # fmt: skip


@pytest.mark.parametrize(
    ("metric", "value", "title"),
    [
        ("kl_k2", 0.1, "The policy moves too far in an iteration"),
        ("kl_k3", 0.3, "KL explodes"),
        ("skipped", 1.0, "Many optimizer steps were skipped"),
        ("degenerate_group_share", 1.0, "Nearly all groups are degenerate"),
        ("truncation_rate", 0.25, "Many responses are cut off"),
        ("rollout_log_prob_diff_sequence_mean", 0.4, "The mismatch is as large as the signal"),
        ("rollout_log_prob_diff_mean", 0.1, "Sampler and trainer disagree"),
    ],
)
def test_one_value_out_of_bounds(make_run, steps_of, metric, value, title):
    def found(name, holds):
        values = QUIET | {metric: lambda iteration, place: value if holds(iteration) else QUIET[metric]}
        return titles(make_run(steps_of(12, **values), name=name))

    assert found("quiet", lambda iteration: False) == {}
    late, early = found("late", lambda iteration: iteration >= 5), found("early", lambda iteration: iteration < 5)
    assert set(late) == set(early) == {title}
    assert (late[title].is_now, early[title].is_now) == (True, False)
    assert late[title].metric == metric


def test_the_mismatch_is_held_to_the_runs_own_bound(make_run, steps_of):
    lines = steps_of(6, **QUIET | {"rollout_log_prob_diff_mean": 0.03})
    assert titles(make_run(lines, name="usual")) == {}
    strict = make_run(lines, config="rollout: {mismatch: {mean_bound: 0.01}}", name="strict")
    assert "0.03 (bound 0.01)" in titles(strict)["Sampler and trainer disagree"].seen


def test_what_holds_at_the_end_comes_first(make_run, steps_of):
    lines = steps_of(
        20, **QUIET | {"kl_k3": lambda i, _: 0.5 * (i < 8), "truncation_rate": lambda i, _: 0.5 * (i >= 10)}
    )
    assert [(finding.title, finding.is_now) for finding in find_warnings(make_run(lines))] == [
        ("Many responses are cut off", True),
        ("KL explodes", False),
    ]
