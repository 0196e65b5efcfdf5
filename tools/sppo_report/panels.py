"""Which metrics share a chart, under which heading, and what each chart shows, in a sentence."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

OTHER = "Other"


@dataclass(frozen=True)
class Panel:
    """One chart. metrics: their names in metrics.jsonl. unit: of the y axis, empty for shares and plain numbers."""

    section: str
    title: str
    metrics: tuple[str, ...]
    meaning: str
    unit: str = ""


PANELS = (
    Panel("Outcome", "Reward", ("reward_mean",), "Mean reward of the responses trained on."),
    Panel(
        "Outcome",
        "Evaluation",
        ("eval_reward_mean", "eval_exact_match"),
        "Held-out prompts: mean reward, and the share answered right if the reward knows a right answer.",
    ),
    Panel(
        "Outcome",
        "Win rate",
        ("win_rate_mean",),
        "Against the policy that sampled: ½ by symmetry.",
    ),
    Panel(
        "Outcome",
        "Win rate against the start",
        ("eval_win_rate_initial", "eval_win_rate_initial_low", "eval_win_rate_initial_high"),
        "Held-out prompts: how often the answer beats that of the policy before training, and the 95% interval.",
    ),
    Panel(
        "Outcome",
        "Win rate against the evaluation before",
        ("eval_win_rate_previous", "eval_win_rate_previous_low", "eval_win_rate_previous_high"),
        "Held-out prompts: how often the answer beats that of the evaluation before, and the 95% interval.",
    ),
    Panel("Regression", "Loss", ("loss",), "Of each step. In the regression its level follows the spread of δ."),
    Panel(
        "Regression",
        "R²",
        ("r_squared",),
        "1 − Σ(s − δ)² / Σ(δ − mean δ)², of responses about to be trained on: small values above 0 are good news.",
    ),
    Panel(
        "Regression",
        "Sign agreement",
        ("sign_agreement",),
        "Share of responses whose log-ratio moved the way its target points; ½ is chance.",
    ),
    Panel(
        "Regression",
        "Targets and residual",
        ("target_std", "target_mean", "residual_rms"),
        "Spread and mean of δ, and the root mean square of s − δ.",
        "nats",
    ),
    Panel("Regression", "Pair accuracy", ("pair_accuracy",), "Share of pairs whose winner has the larger log-ratio."),
    Panel("Regression", "Pair margin", ("pair_margin_mean",), "Mean of s(winner) − s(loser).", "nats"),
    Panel(
        "Policy",
        "Largest log-ratio",
        ("log_ratio_abs_max",),
        "Largest |s| of a response.",
        "nats",
    ),
    Panel(
        "Policy",
        "Log-ratio",
        ("log_ratio_mean", "log_ratio_std"),
        "Mean and spread of s over responses.",
        "nats",
    ),
    Panel("Policy", "Log-ratio, ends", ("log_ratio_min", "log_ratio_max"), "Smallest and largest s.", "nats"),
    Panel(
        "Policy", "KL per response", ("kl_k1", "kl_k2"), "KL(π_t‖π_θ) by the estimators −s and s²/2.", "nats/response"
    ),
    Panel("Policy", "KL per token", ("kl_k3",), "KL(π_t‖π_θ) by the estimator e^s − 1 − s per token.", "nats/token"),
    Panel("Policy", "Entropy", ("entropy",), "Mean entropy of π_t at the response tokens.", "nats/token"),
    Panel("Policy", "Log-ratio per token", ("log_ratio_per_token",), "Σs over Σ length.", "nats/token"),
    Panel("Policy", "KL to π_ref", ("kl_ref",), "Mean log π_t − log π_ref of a sampled response.", "nats"),
    Panel("Policy", "Implied reward", ("implied_reward_mean",), "Mean of τ·s.", "reward"),
    Panel(
        "Responses", "Length", ("response_length_mean", "eval_response_length_mean"), "Mean response length.", "tokens"
    ),
    Panel(
        "Responses",
        "Truncated",
        ("truncation_rate", "eval_truncation_rate"),
        "Share of responses cut off at the length limit.",
    ),
    Panel(
        "Responses",
        "Degenerate groups",
        ("degenerate_group_share",),
        "Share of prompts whose responses all have one reward: they say nothing about order.",
    ),
    Panel(
        "Responses",
        "Failed",
        ("reward_errors", "invalid_sequences"),
        "Responses whose scoring failed, and responses without a token.",
        "responses",
    ),
    Panel(
        "Rollout against trainer",
        "Mismatch per token",
        ("rollout_log_prob_diff_mean", "rollout_log_prob_diff_max"),
        "|old − rollout| log-prob: how far the sampler and the trainer disagree about the same token.",
        "nats/token",
    ),
    Panel(
        "Rollout against trainer",
        "Mismatch per response",
        ("rollout_log_prob_diff_sequence_mean",),
        "|Σ (old − rollout)|: a bias per token grows with the length here. Compare it with the spread of δ.",
        "nats/response",
    ),
    Panel(
        "Rollout against trainer",
        "Before the gate, per token",
        ("mismatch_mean", "mismatch_max"),
        "|old − rollout| of all responses of an iteration, those included that are left out.",
        "nats/token",
    ),
    Panel(
        "Rollout against trainer",
        "Before the gate, per response",
        ("mismatch_sequence_mean", "mismatch_sequence_max"),
        "|Σ (old − rollout)| of all responses of an iteration.",
        "nats/response",
    ),
    Panel(
        "Rollout against trainer",
        "Tokens over the bound",
        ("mismatch_share_over",),
        "Share of tokens that differ by more than rollout.mismatch.token_bound.",
    ),
    Panel(
        "Rollout against trainer",
        "Left out",
        ("mismatch_dropped",),
        "Responses that rollout.mismatch left out of training.",
        "responses",
    ),
    Panel(
        "Rollout against trainer",
        "FP8 against the run's dtype",
        ("fp8_log_prob_diff_mean", "fp8_log_prob_diff_max"),
        "The difference that FP8 makes to log-probs of the same responses.",
        "nats/token",
    ),
    Panel(
        "Rollout against trainer",
        "Effective sample size",
        ("importance_ess",),
        "(Σw)²/Σw² of the importance weights; at best the number of responses of the step.",
        "responses",
    ),
    Panel("Optimizer", "Gradient norm", ("grad_norm",), "Before clipping."),
    Panel("Optimizer", "Learning rate", ("lr",), "As used in the step."),
    Panel("Optimizer", "Skipped steps", ("skipped",), "1 if the gradients overflowed and no update was made."),
    Panel(
        "Time",
        "Stages",
        ("seconds_rollout", "seconds_reward", "seconds_log_probs", "seconds_train", "seconds_sync"),
        "What an iteration spends on each stage.",
        "s/iteration",
    ),
    Panel(
        "Time",
        "Speed",
        ("tokens_per_second", "rollout_tokens_per_second"),
        "Tokens of a training step, and response tokens of a rollout, over their seconds.",
        "tokens/s",
    ),
    Panel(OTHER, "Responses in a step", ("sequences",), "With at least one token.", "responses"),
    Panel(OTHER, "Pairs in a step", ("pairs", "invalid_pairs"), "Pairs trained on, and pairs left out.", "pairs"),
)
# Where a metric that no panel names is shown, by its prefix.
_PREFIXES = {"eval_": "Outcome", "seconds_": "Time", "sync_": "Time"} | dict.fromkeys(
    ("rollout_", "mismatch_", "probe_", "fp8_"), "Rollout against trainer"
)


def panels_for(metrics: Iterable[str]) -> list[Panel]:
    """The panels that have something to show, in their order by section. A metric of no panel gets one of its own."""
    logged = set(metrics)
    found = [panel for panel in PANELS if logged & set(panel.metrics)]
    known = {name for panel in PANELS for name in panel.metrics}
    found += [Panel(_section_of(name), name, (name,), "") for name in sorted(logged - known)]
    sections = list(dict.fromkeys([*(panel.section for panel in PANELS), OTHER]))
    return sorted(found, key=lambda panel: sections.index(panel.section))


def _section_of(metric: str) -> str:
    return next((section for prefix, section in _PREFIXES.items() if metric.startswith(prefix)), OTHER)
