"""Warnings about a whole run, on runs whose truth is known."""

import math
import random

import pytest

from sppo_report.findings.trends import find_trends

TITLES = {
    "flat": "The reward stays flat",
    "falls": "The reward falls",
    "no fit": "R² does not rise",
    "entropy": "Entropy collapses",
    "evaluation": "The evaluation is worse than before training",
}


def titles(run):
    return [finding.title for finding in find_trends(run)]


def rewards(start, end, noise=0.05, seed=0):
    rng = random.Random(seed)
    return lambda iteration, place: start + (end - start) * iteration / 39 + rng.gauss(0, noise)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("start", "end", "expected"), [(0.3, 0.8, []), (0.8, 0.3, ["falls"])])
def test_a_reward_that_moves(make_run, steps_of, start, end, expected, seed):
    run = make_run(steps_of(40, reward_mean=rewards(start, end, seed=seed)))
    assert titles(run) == [TITLES[name] for name in expected]


def test_a_reward_of_noise_alone(make_run, steps_of):
    """At two standard errors about one run in forty looks as if it rose, and one as if it fell."""
    found = [
        titles(make_run(steps_of(40, reward_mean=rewards(0.5, 0.5, seed=seed)), name=f"run{seed}"))
        for seed in range(100)
    ]
    assert found.count([TITLES["flat"]]) >= 88


def test_a_short_run_has_no_trend(make_run, steps_of):
    assert titles(make_run(steps_of(19, reward_mean=0.5, entropy=lambda iteration, place: 0.5**iteration))) == []


def regression(gain):
    """s = (1 − sqrt(1 − gain))·δ from the second step of an iteration on: the squared residual falls by `gain`."""
    residual = {0: 1.0, 1: math.sqrt(1 - gain)}
    return {"target_mean": 0.6, "target_std": 0.8, "residual_rms": lambda iteration, place: residual[place]}


@pytest.mark.parametrize(("gain", "expected"), [(0.0, ["no fit"]), (0.01, ["no fit"]), (0.1, []), (-0.5, [])])
def test_a_regression_without_effect(make_run, steps_of, gain, expected):
    run = make_run(steps_of(25, per_iteration=2, **regression(gain)))
    assert titles(run) == [TITLES[name] for name in expected]


def test_a_regression_that_cannot_be_seen(make_run, steps_of):
    """One step an iteration: s is always 0. Pairs: there is no δ to follow."""
    assert titles(make_run(steps_of(25, target_mean=0.0, target_std=1.0, residual_rms=1.0))) == []
    lines = steps_of(25, per_iteration=2, **regression(0.0))
    assert titles(make_run(lines, config="objective: {pairwise: dpo}", name="pairs")) == []


def test_entropy(make_run, steps_of):
    collapsed = make_run(steps_of(30, entropy=lambda iteration, place: 2.0 * 0.8**iteration), name="collapsed")
    assert titles(collapsed) == [TITLES["entropy"]]
    lower = make_run(steps_of(30, entropy=lambda iteration, place: 2.0 - iteration / 20), name="lower")
    assert titles(lower) == []


@pytest.mark.parametrize(("after", "expected"), [(0.4, ["evaluation"]), (0.49, []), (0.6, [])])
def test_evaluation(make_run, after, expected):
    values = [0.5, 0.7, after]
    lines = [{"eval_step": step, "eval_iteration": step, "eval_reward_mean": v} for step, v in enumerate(values)]
    found = list(find_trends(make_run(lines)))
    assert [finding.title for finding in found] == [TITLES[name] for name in expected]
    assert all("0.7 at best" in finding.seen for finding in found)
