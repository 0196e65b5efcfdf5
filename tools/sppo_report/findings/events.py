"""Warnings about single events: gradient spikes, scoring that failed."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from statistics import median

from sppo_report.findings.finding import Finding
from sppo_report.findings.windows import iteration_means, metric
from sppo_report.run_folder import Run, finite

SPIKE = 10.0  # times the median of the steps before
HISTORY = 50  # steps; a spike needs at least a tenth of them before it


def find_events(run: Run) -> Iterator[Finding]:
    yield from _gradient_spikes(run)
    yield from _reward_errors(run)


def _gradient_spikes(run: Run) -> Iterator[Finding]:
    before: deque[float] = deque(maxlen=HISTORY)
    spikes: list[tuple[int, float]] = []  # step, times the median
    for line in run.steps:
        norm = finite(line.get("grad_norm"))
        if norm is None:
            continue
        if len(before) >= HISTORY // 10 and (usual := median(before)) > 0 and norm > SPIKE * usual:
            spikes.append((line["step"], norm / usual))
        before.append(norm)
    if not spikes:
        return
    step, factor = max(spikes, key=lambda spike: spike[1])
    clip = finite(run.config.get("optimizer.clip_grad"))
    yield Finding(
        title="The gradient norm spikes",
        seen=f"{len(spikes)} of {len(run.steps)} steps above {SPIKE:g} times the median before them; the largest is "
        f"step {step} with {factor:.3g} times.",
        meaning="Single mini-batches pull far harder than the rest. "
        + (
            f"Clipping at {clip:g} bounds the update, but Adam's second moment remembers the spike."
            if clip
            else "Nothing clips them."
        ),
        advice="Look at the responses of that iteration: very long ones, extreme rewards, a large mismatch. "
        "objective.target_clip bounds δ"
        + (", a lower optimizer.clip_grad the gradient." if clip else ", optimizer.clip_grad=1.0 the gradient."),
        metric="grad_norm",
        is_now=spikes[-1][0] > run.steps[-1]["step"] - HISTORY,
    )


def _reward_errors(run: Run) -> Iterator[Finding]:
    errors = iteration_means(run, metric("reward_errors"))
    failed = {iteration: count for iteration, count in errors.items() if count > 0}
    if not failed:
        return
    yield Finding(
        title="Scoring failed for some responses",
        seen=f"{sum(failed.values()):.0f} responses in {len(failed)} of {len(errors)} iterations, most in iteration "
        f"{max(failed, key=failed.__getitem__)}.",
        meaning="The reward raised an error or took too long. These responses got the default reward, which is a wrong "
        "label wherever the response was right.",
        advice="Read the errors in the responses below. Fix the reward function, or raise reward.timeout_s.",
        metric="reward_errors",
        is_now=max(failed) == max(errors),
    )
