"""Warnings about a whole run: what should rise and doesn't, what falls and shouldn't."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import fmean, pvariance

from sppo_report.findings.finding import Finding
from sppo_report.findings.sustained import loss_growth
from sppo_report.findings.windows import WINDOW, iteration_means, metric, stretches_above
from sppo_report.run_folder import Run, finite

MIN_ITERATIONS = 20  # fewer say nothing about a trend
STANDARD_ERRORS = 2.0
NO_FIT = 0.02  # of the squared targets
ENTROPY_LEFT = 0.1  # of the first iterations'
EVALUATION_LOSS = 0.02


def find_trends(run: Run) -> Iterator[Finding]:
    yield from _reward(run)
    yield from _regression(run)
    yield from _entropy(run)
    yield from _evaluation(run)


def _reward(run: Run) -> Iterator[Finding]:
    """First against last quarter. Iterations have different prompts, so their spread is the measure of noise."""
    rewards = list(iteration_means(run, metric("reward_mean")).values())
    if len(rewards) < MIN_ITERATIONS:
        return
    quarter = len(rewards) // 4
    start, end = rewards[:quarter], rewards[-quarter:]
    change = fmean(end) - fmean(start)
    noise = STANDARD_ERRORS * math.sqrt((pvariance(start) + pvariance(end)) / quarter)
    seen = f"Mean reward {fmean(start):.3g} in the first quarter, {fmean(end):.3g} in the last (noise ±{noise:.2g})."
    if change < -noise:
        yield Finding(
            title="The reward falls",
            seen=seen,
            meaning="The policy gets worse at what it is trained for: the updates are too large, or train and sampling "
            "don't describe the same policy.",
            advice="Look at the log-ratio and the mismatch first. Lower optimizer.lr and start again from an earlier "
            "checkpoint.",
            metric="reward_mean",
        )
    elif change <= noise:
        yield Finding(
            title="The reward stays flat",
            seen=seen,
            meaning="Nothing is learned that the noise between iterations wouldn't hide, or there is nothing left to "
            "learn: then most groups are degenerate and the level is high.",
            advice="If log-ratios are tiny, raise optimizer.lr. If groups are degenerate, change the prompts. Read "
            "some best and worst responses: does the reward tell them apart?",
            metric="reward_mean",
        )


def _regression(run: Run) -> Iterator[Finding]:
    """Never better than no update, and not worse either, which is a finding of its own."""
    if run.config.get("objective.pairwise") or run.config.get("objective.name", "sppo") != "sppo":
        return
    growth = iteration_means(run, loss_growth, after_first_step=True)
    gains = {iteration: -value for iteration, value in growth.items()}
    if len(gains) < MIN_ITERATIONS or stretches_above(gains, NO_FIT) or stretches_above(growth, NO_FIT):
        return
    yield Finding(
        title="R² does not rise",
        seen=f"After the first step of an iteration the squared residual is as large as without an update, within "
        f"{NO_FIT:.0%}, in all {len(gains)} iterations.",
        meaning="The policy's log-ratios don't follow their targets: the updates are too small to be seen, or the "
        "targets say nothing that carries over from one mini-batch to the next.",
        advice="Raise optimizer.lr step by step while the root mean square of s stays below 0.3; check that optimizer "
        "steps aren't skipped and that the reward tells responses apart.",
        metric="r_squared",
    )


def _entropy(run: Run) -> Iterator[Finding]:
    values = list(iteration_means(run, metric("entropy")).values())
    if len(values) < MIN_ITERATIONS:
        return
    start, end = fmean(values[:WINDOW]), fmean(values[-WINDOW:])
    if end < ENTROPY_LEFT * start:
        yield Finding(
            title="Entropy collapses",
            seen=f"{start:.3g} nats per token in the first {WINDOW} iterations, {end:.3g} in the last.",
            meaning="The policy answers nearly the same each time, so that groups lose their spread and learning "
            "stops, whether or not the task is solved.",
            advice="If the task isn't solved: a lower optimizer.lr, a lower objective.eta, more varied prompts.",
            metric="entropy",
        )


def _evaluation(run: Run) -> Iterator[Finding]:
    values = [number for line in run.evaluations if (number := finite(line.get("eval_reward_mean"))) is not None]
    if len(values) >= 2 and values[-1] < values[0] - EVALUATION_LOSS:
        yield Finding(
            title="The evaluation is worse than before training",
            seen=f"Mean reward on held-out prompts {values[0]:.3g} before, {values[-1]:.3g} at the end{_best(values)}.",
            meaning="What is learned, if anything, doesn't carry over to held-out prompts.",
            advice="If training reward rose, the prompts are too few or too different from those held out. If it fell, "
            "too, lower optimizer.lr.",
            metric="eval_reward_mean",
        )


def _best(values: Sequence[float]) -> str:
    return f", {max(values):.3g} at best" if max(values) > values[0] else ""
