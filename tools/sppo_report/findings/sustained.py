"""Warnings about a value that stays above its bound for several iterations."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from sppo_report.findings.finding import Finding
from sppo_report.findings.windows import Value, in_words, iteration_means, metric, stretches_above
from sppo_report.run_folder import Line, Run, finite

MISMATCH_BOUND = 0.05  # nats per token, if the run's configuration has none


@dataclass(frozen=True)
class Check:
    """value: of a step; means over iterations are compared with the bound. seen: its name. metric: the curve's."""

    title: str
    value: Value
    bound: float
    seen: str
    metric: str
    meaning: str
    advice: str
    after_first_step: bool = False


def log_ratio_rms(line: Line) -> float | None:
    """Root mean square of s over the responses of a step, nats; mean |s| is at most that."""
    half_square = finite(line.get("kl_k2"))
    return None if half_square is None else math.sqrt(2 * max(0.0, half_square))


def loss_growth(line: Line) -> float | None:
    """Σ(s − δ)²/Σδ² − 1: by which share the squared residual is larger than without any update."""
    residual, mean, std = (finite(line.get(name)) for name in ("residual_rms", "target_mean", "target_std"))
    if residual is None or mean is None or std is None or mean * mean + std * std == 0:
        return None
    return residual * residual / (mean * mean + std * std) - 1


def mismatch_to_target(line: Line) -> float | None:
    """Mean |Σ(old − rollout)| of a response over the spread of the targets, both in nats."""
    mismatch, spread = finite(line.get("rollout_log_prob_diff_sequence_mean")), finite(line.get("target_std"))
    return None if mismatch is None or not spread else mismatch / spread


def find_sustained(run: Run) -> Iterator[Finding]:
    last = max(run.by_iteration(), default=0)
    for check in (*POLICY_CHECKS, *ROLLOUT_CHECKS, _mismatch_check(run)):
        means = iteration_means(run, check.value, after_first_step=check.after_first_step)
        stretches = stretches_above(means, check.bound)
        if stretches:
            worst = max(stretches, key=lambda stretch: stretch.mean)
            yield Finding(
                title=check.title,
                seen=f"{check.seen} was {worst.mean:.3g} (bound {check.bound:g}) in {in_words(stretches)}.",
                meaning=check.meaning,
                advice=check.advice,
                metric=check.metric,
                is_now=stretches[-1].last == last,
            )


POLICY_CHECKS = (
    Check(
        title="The policy moves too far in an iteration",
        value=log_ratio_rms,
        bound=0.3,
        seen="The root mean square of s (at least the mean |s|)",
        metric="kl_k2",
        meaning="Log-ratios this large announce a collapse: responses sampled at the start of the iteration no longer "
        "describe the policy that is trained on them, and reward usually falls soon after.",
        advice="Lower optimizer.lr (halve it), add optimizer.lr_warmup_steps, or take fewer steps an iteration (larger "
        "train.minibatch_size, train.epochs_per_iteration=1). A smaller objective.eta helps if gradients aren't "
        "clipped. With responses of thousands of tokens a larger value can be harmless while reward rises.",
    ),
    Check(
        title="Updates make the regression worse",
        value=loss_growth,
        bound=0.1,
        seen="The growth of the squared residual over that of no update at all, as a share,",
        metric="r_squared",
        meaning="After the first step of an iteration s is further from its targets than s = 0 would be: the updates "
        "overshoot, or push responses of fresh mini-batches the wrong way.",
        advice="Lower optimizer.lr, and enlarge train.minibatch_size so that a step averages over more prompts.",
        after_first_step=True,
    ),
    Check(
        title="KL explodes",
        value=metric("kl_k3"),
        bound=0.1,
        seen="KL(π_t‖π_θ) by k3 within an iteration, in nats per token,",
        metric="kl_k3",
        meaning="The policy gives up what it knew faster than one iteration of samples can justify.",
        advice="Lower optimizer.lr, or take fewer optimizer steps an iteration. Continue from a checkpoint before the "
        "rise with checkpoint.load.",
    ),
    Check(
        title="Many optimizer steps were skipped",
        value=metric("skipped"),
        bound=0.05,
        seen="The share of skipped steps",
        metric="skipped",
        meaning="Gradients overflowed, so these steps made no update. In fp16 a few at the start are normal while the "
        "loss scale settles.",
        advice="Use precision.dtype=bf16, or lower precision.initial_loss_scale; if it goes on, lower optimizer.lr.",
    ),
)
ROLLOUT_CHECKS = (
    Check(
        title="Nearly all groups are degenerate",
        value=metric("degenerate_group_share"),
        bound=0.9,
        seen="The share of prompts whose responses all have one reward",
        metric="degenerate_group_share",
        meaning="Such a group says nothing about which response is better. With a mean baseline it has no gradient, "
        "and with a constant one it only pushes all its responses up or down.",
        advice="Read one of them among the responses below. If all are solved, take harder prompts; if none is, "
        "easier ones or a warm-up. A finer reward, more responses (rollout.num_samples_per_prompt) or a higher "
        "rollout.temperature bring spread.",
    ),
    Check(
        title="Many responses are cut off",
        value=metric("truncation_rate"),
        bound=0.2,
        seen="The share of responses that reached the length limit",
        metric="truncation_rate",
        meaning="A response that is cut off is scored for what is missing, and the policy learns about its limit more "
        "than about the task.",
        advice="Raise rollout.max_response_length. If lengths keep growing all the same, look whether the reward pays "
        "for length, and set objective.length_reward_weight.",
    ),
    Check(
        title="The mismatch is as large as the signal",
        value=mismatch_to_target,
        bound=0.5,
        seen="The mean |Σ(old − rollout)| of a response over the spread of δ",
        metric="rollout_log_prob_diff_sequence_mean",
        meaning="Sampler and trainer disagree about whole responses by as much as the targets ask for: what is trained "
        "is not what was sampled.",
        advice="Bring the engines' precision together, check that the weights reach the sampler, and use "
        "objective.importance_weight=sequence.",
    ),
)


def _mismatch_check(run: Run) -> Check:
    """Its bound is that of the run's own gate."""
    bound = finite(run.config.get("rollout.mismatch.mean_bound"))
    return Check(
        title="Sampler and trainer disagree",
        value=metric("rollout_log_prob_diff_mean"),
        bound=MISMATCH_BOUND if bound is None else bound,
        seen="The mean |old − rollout| log-prob of a token, in nats,",
        metric="rollout_log_prob_diff_mean",
        meaning="More than rounding in bf16 explains. The sampler may hold old weights, another precision, another "
        "temperature or top_p, or another tokenisation of the prompt.",
        advice="Look at the most mismatched responses below: all tokens alike points to weights or precision, single "
        "tokens to the tokenizer or to sampling settings (rollout.top_p=1, rollout.top_k=-1). Until it is found, "
        "objective.importance_weight=sequence bounds the harm.",
    )
