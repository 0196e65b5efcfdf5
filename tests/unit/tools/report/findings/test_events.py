"""Warnings about single events."""

import random

from sppo_report.findings.events import find_events


def test_gradient_spikes(make_run, steps_of):
    rng = random.Random(0)
    norms = {119: 300.0, 150: 90.0}  # by iteration; the others are about 5
    lines = steps_of(200, grad_norm=lambda iteration, place: norms.get(iteration, rng.uniform(3, 7)))
    (finding,) = find_events(make_run(lines, config="optimizer: {clip_grad: 1.0}"))
    assert finding.title == "The gradient norm spikes"
    assert finding.seen.startswith("2 of 200 steps") and "step 120 with" in finding.seen
    assert "Clipping at 1" in finding.meaning
    assert finding.is_now, "step 151 is among the last fifty"


def test_no_spikes(make_run, steps_of):
    """A level that rises slowly, a large first step, a small one in between, and a run too short to tell."""
    odd = {0: 1000.0, 100: 0.1}
    lines = steps_of(200, grad_norm=lambda iteration, place: odd.get(iteration, 1.0 + iteration))
    assert list(find_events(make_run(lines))) == []
    short = steps_of(4, grad_norm=lambda iteration, place: 1000.0**iteration)
    assert list(find_events(make_run(short, name="short"))) == []


def test_scoring_that_failed(make_run, steps_of):
    lines = steps_of(6, per_iteration=3, reward_errors=lambda iteration, place: {1: 2.0, 4: 5.0}.get(iteration, 0.0))
    (finding,) = find_events(make_run(lines))
    assert finding.seen == "7 responses in 2 of 6 iterations, most in iteration 4."
    assert not finding.is_now
    assert list(find_events(make_run(steps_of(6, reward_errors=0.0), name="well"))) == []
