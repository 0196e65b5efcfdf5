"""From lines of metrics to curves over optimizer steps, thin enough for a page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import fmean

from sppo_report.run_folder import Line, Run, finite

MAX_POINTS = 2000
# Every step of an iteration repeats these, though they hold for the iteration as a whole.
PER_ITERATION = re.compile(
    r"(entropy|degenerate_group_share|reward_errors|reward_mean_sampled)$"
    r"|(seconds|mismatch|sync|probe|fp8|rollout_tokens|rollout_rounds|groups|prompts_waiting)"
)
SECONDS, SECONDS_TRAIN = "seconds_", "seconds_train"
# Measures of s. At the first step of an iteration θ is still θ_t, so there they say nothing.
OF_LOG_RATIO = re.compile(r"log_ratio_|kl_k|r_squared$|sign_agreement$|implied_reward_|pair_margin_|pair_accuracy$")
NOT_CURVES = {"step", "iteration", "eval_step", "eval_iteration"}


@dataclass
class Curve:
    """steps: optimizer steps, ascending. values: finite, as many.

    means: of a thinned curve, the mean of all values around each point, since the points themselves are extremes.
    """

    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    means: list[float] | None = None


def curves(run: Run) -> dict[str, Curve]:
    """Every number that was logged, by metric. Values that are missing or not finite have no point.

    What holds for an iteration has one point, at its first step; seconds_* are those of the whole iteration. Measures
    of s begin at the second step of an iteration that has one.
    """
    found: dict[str, Curve] = {}
    for step, name, value in _points(run):
        curve = found.setdefault(name, Curve())
        curve.steps.append(step)
        curve.values.append(value)
    return found


def thin(curve: Curve, limit: int = MAX_POINTS) -> Curve:
    """At most `limit` points: the ends, and of each of equal stretches the lowest and the highest. Spikes stay."""
    count, value_at = len(curve.steps), curve.values.__getitem__
    if count <= limit:
        return curve
    stretches = (limit - 2) // 2
    means: dict[int, float] = {}  # by place
    for i in range(stretches):
        stretch = range(i * count // stretches, (i + 1) * count // stretches)
        ends = {0, count - 1} & {stretch[0], stretch[-1]}
        kept = {min(stretch, key=value_at), max(stretch, key=value_at)} | ends
        means |= dict.fromkeys(kept, fmean(map(value_at, stretch)))
    places = sorted(means)
    return Curve([curve.steps[i] for i in places], [curve.values[i] for i in places], [means[i] for i in places])


def _points(run: Run) -> Iterator[tuple[int, str, float]]:
    """(step, metric, value), ascending in step for each metric."""
    for lines in run.by_iteration().values():
        for place, line in enumerate(lines):
            for name, number in _numbers(line):
                if _is_shown(name, place, len(lines)):
                    yield line["step"], name, number
        seconds = [value for line in lines if (value := finite(line.get(SECONDS_TRAIN))) is not None]
        if seconds:
            yield lines[0]["step"], SECONDS_TRAIN, sum(seconds)
    for line in run.evaluations:
        for name, number in _numbers(line):
            yield line["eval_step"], name, number


def _is_shown(name: str, place: int, num_steps: int) -> bool:
    """place: of the step among the num_steps of its iteration."""
    if name == SECONDS_TRAIN:
        return False  # its sum is
    if PER_ITERATION.match(name):
        return place == 0
    return place > 0 or num_steps == 1 or not OF_LOG_RATIO.match(name)


def _numbers(line: Line) -> Iterator[tuple[str, float]]:
    for name, value in line.items():
        number = finite(value)
        if number is not None and name not in NOT_CURVES:
            yield name, number
