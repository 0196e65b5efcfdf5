"""Means over iterations, and the stretches where they stay above a bound. One odd step isn't a finding."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from sppo_report.run_folder import Line, Run, finite

WINDOW = 5  # iterations; all of them in a shorter run

Value = Callable[[Line], float | None]


class Stretch(NamedTuple):
    """Iterations first..last. mean: of the values in them."""

    first: int
    last: int
    mean: float


def metric(name: str) -> Value:
    return lambda line: finite(line.get(name))


def iteration_means(run: Run, value: Value, *, after_first_step: bool = False) -> dict[int, float]:
    """The mean of a value over the steps of each iteration that has any.

    after_first_step: without the first step of each iteration, at which the policy is still the one that sampled.
    """
    means: dict[int, float] = {}
    for iteration, lines in run.by_iteration().items():
        values = [number for line in lines[after_first_step:] if (number := value(line)) is not None]
        if values:
            means[iteration] = fmean(values)
    return means


def stretches_above(means: Mapping[int, float], bound: float) -> list[Stretch]:
    """The stretches of iterations covered by windows whose mean is above the bound; overlapping windows are one."""
    iterations, values = list(means), list(means.values())
    width = min(WINDOW, len(values))
    spans: list[list[int]] = []
    for start in range(len(values) - width + 1 if values else 0):
        if fmean(values[start : start + width]) <= bound:
            continue
        if spans and start <= spans[-1][1]:
            spans[-1][1] = start + width
        else:
            spans.append([start, start + width])
    return [Stretch(iterations[a], iterations[b - 1], fmean(values[a:b])) for a, b in spans]


def in_words(stretches: Sequence[Stretch]) -> str:
    """`iterations 0–4, 12–30`; of many the longest three."""
    longest = sorted(sorted(stretches, key=lambda s: s.first - s.last)[:3])
    places = ", ".join(f"{s.first}–{s.last}" if s.last > s.first else str(s.first) for s in longest)
    more = f" and {len(stretches) - 3} shorter stretches" if len(stretches) > 3 else ""
    one = len(stretches) == 1 and longest[0].first == longest[0].last
    return f"iteration{'' if one else 's'} {places}{more}"
