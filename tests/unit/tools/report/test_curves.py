"""Curves: every number that was logged, where it was logged; a thinned curve keeps its shape."""

import math
import random

import pytest

from sppo_report.curves import Curve, curves, thin


def test_points_are_those_of_the_file(make_run, steps_of):
    lines = steps_of(
        3,
        per_iteration=2,
        loss=lambda iteration, place: 10 * iteration + place,
        entropy=lambda iteration, place: iteration / 10,
        r_squared=lambda iteration, place: place / 2,
        seconds_rollout=lambda iteration, place: 5.0 + iteration,
        seconds_train=lambda iteration, place: 1.0 + place,
    )
    lines[3]["loss"] = None
    lines[4]["custom"] = 7
    evaluation = {"eval_step": 6, "eval_iteration": 3, "eval_reward_mean": 0.25, "eval_note": "text"}
    found = curves(make_run([*lines, evaluation]))
    assert found == {
        "loss": Curve([1, 2, 3, 5, 6], [0, 1, 10, 20, 21]),
        "custom": Curve([5], [7]),
        "eval_reward_mean": Curve([6], [0.25]),
        # once an iteration
        "entropy": Curve([1, 3, 5], [0.0, 0.1, 0.2]),
        "seconds_rollout": Curve([1, 3, 5], [5.0, 6.0, 7.0]),
        "seconds_train": Curve([1, 3, 5], [3.0, 3.0, 3.0]),
        # s is 0 by construction at the first step of an iteration
        "r_squared": Curve([2, 4, 6], [0.5, 0.5, 0.5]),
    }


def test_an_iteration_of_one_step_keeps_its_log_ratio(make_run, steps_of):
    found = curves(make_run(steps_of(3, log_ratio_abs_max=0.0)))
    assert found["log_ratio_abs_max"].steps == [1, 2, 3]


@pytest.mark.parametrize("count", [2001, 5000, 100_000])
def test_thinned(count):
    rng = random.Random(0)
    values = [math.sin(i / 500) + rng.expovariate(1.0) for i in range(count)]  # skewed, as norms and losses are
    spike, dip = count // 3, count // 2
    values[spike], values[dip] = 50.0, -50.0
    thinned = thin(Curve(list(range(1, count + 1)), values), limit=2000)
    assert len(thinned.steps) <= 2000
    assert thinned.steps == sorted(set(thinned.steps))
    assert all(value == values[step - 1] for step, value in zip(thinned.steps, thinned.values, strict=True))
    assert (thinned.steps[0], thinned.steps[-1]) == (1, count)
    assert {spike + 1, dip + 1} <= set(thinned.steps)
    assert len(thinned.means) == len(thinned.steps)
    assert sum(thinned.means) / len(thinned.means) == pytest.approx(sum(values) / count, abs=0.02)
    gaps = [b - a for a, b in zip(thinned.steps, thinned.steps[1:], strict=False)]
    assert max(gaps) <= 2 * math.ceil(count / 999), "no stretch is left out"


def test_a_short_curve_stays_as_it_is():
    curve = Curve([1, 2, 3], [3.0, 1.0, 2.0])
    assert thin(curve, limit=3) is curve
