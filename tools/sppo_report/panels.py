"""Which metrics share a chart, under which heading, what each chart shows, and what to do if it looks odd.

The report draws them, and `sppo_report.metric_reference` writes them down as a page.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

OTHER = "Other"


@dataclass(frozen=True)
class Panel:
    """One chart. metrics: their names in metrics.jsonl. unit: of the y axis, empty for shares and plain numbers.

    advice: what an odd value looks like and what to do about it, empty if nothing can be odd about it alone.
    """

    section: str
    title: str
    metrics: tuple[str, ...]
    meaning: str
    unit: str = ""
    advice: str = ""


PANELS = (
    Panel(
        "Outcome",
        "Reward",
        ("reward_mean",),
        "Mean reward of the responses trained on.",
        advice="If it stays flat: read best and worst responses, see degenerate groups, then raise optimizer.lr. "
        "If it falls: lower optimizer.lr and look at the mismatch.",
    ),
    Panel(
        "Outcome",
        "Evaluation",
        ("eval_reward_mean", "eval_exact_match"),
        "Held-out prompts: mean reward, and the share answered right if the reward knows a right answer.",
        advice="If the reward rises and this doesn't, the reward is being gamed, or the prompts are too few or "
        "unlike those held out.",
    ),
    Panel(
        "Outcome",
        "Win rate",
        ("win_rate_mean",),
        "Against the policy that sampled: ½ by symmetry.",
        advice="Away from ½, the judge prefers a place in the question: win rates are then not symmetric.",
    ),
    Panel(
        "Outcome",
        "Win rate against the start",
        ("eval_win_rate_initial", "eval_win_rate_initial_low", "eval_win_rate_initial_high"),
        "Held-out prompts: how often the answer beats that of the policy before training, and the 95% interval.",
        advice="At ½ after many iterations nothing is learned; above .95 compare with the evaluation before instead.",
    ),
    Panel(
        "Outcome",
        "Win rate against the evaluation before",
        ("eval_win_rate_previous", "eval_win_rate_previous_low", "eval_win_rate_previous_high"),
        "Held-out prompts: how often the answer beats that of the evaluation before, and the 95% interval.",
        advice="Below ½ more than once: the policy is getting worse; lower optimizer.lr, go back to `best`.",
    ),
    Panel(
        "Regression",
        "Loss",
        ("loss",),
        "Of each step. In the regression its level follows the spread of δ.",
        advice="Compare it with R², not with other runs: a larger objective.eta makes it larger by itself.",
    ),
    Panel(
        "Regression",
        "R²",
        ("r_squared",),
        "1 − Σ(s − δ)² / Σ(δ − mean δ)², of responses about to be trained on: small values above 0 are good news.",
        advice="Far below 0 from the second epoch on: updates overshoot; lower optimizer.lr or "
        "train.epochs_per_iteration.",
    ),
    Panel(
        "Regression",
        "Sign agreement",
        ("sign_agreement",),
        "Share of responses whose log-ratio moved the way its target points; ½ is chance.",
        advice="At ½ for long: updates are too small, or the targets are noise.",
    ),
    Panel(
        "Regression",
        "Targets and residual",
        ("target_std", "target_mean", "residual_rms"),
        "Spread and mean of δ, and the root mean square of s − δ.",
        "nats",
        advice="target_std near 0: groups are degenerate. Above about 10: lower objective.eta or set "
        "objective.target_clip.",
    ),
    Panel(
        "Regression",
        "Pair accuracy",
        ("pair_accuracy",),
        "Share of pairs whose winner has the larger log-ratio.",
        advice="At 1 from the first step on: the pairs were learned before, stop or take new ones.",
    ),
    Panel(
        "Regression",
        "Pair margin",
        ("pair_margin_mean",),
        "Mean of s(winner) − s(loser).",
        "nats",
        advice="If it grows without bound while the evaluation falls, lower optimizer.lr or the number of epochs.",
    ),
    Panel(
        "Policy",
        "Largest log-ratio",
        ("log_ratio_abs_max",),
        "Largest |s| of a response.",
        "nats",
        advice="Above about 20 a response's probability has changed e²⁰-fold: lower optimizer.lr, see the "
        "response in the report.",
    ),
    Panel(
        "Policy",
        "Log-ratio",
        ("log_ratio_mean", "log_ratio_std"),
        "Mean and spread of s over responses.",
        "nats",
        advice="A mean that sinks over iterations: probability leaves what was sampled; lower optimizer.lr.",
    ),
    Panel("Policy", "Log-ratio, ends", ("log_ratio_min", "log_ratio_max"), "Smallest and largest s.", "nats"),
    Panel(
        "Policy",
        "KL per response",
        ("kl_k1", "kl_k2"),
        "KL(π_t‖π_θ) by the estimators −s and s²/2.",
        "nats/response",
        advice="A root mean square of s of .05 to .13 is healthy, .3 and more announces collapse (measured on "
        "the demo's task).",
    ),
    Panel("Policy", "KL per token", ("kl_k3",), "KL(π_t‖π_θ) by the estimator e^s − 1 − s per token.", "nats/token"),
    Panel(
        "Policy",
        "Entropy",
        ("entropy",),
        "Mean entropy of π_t at the response tokens.",
        "nats/token",
        advice="If it collapses before the task is solved: lower optimizer.lr or objective.eta, take more varied "
        "prompts.",
    ),
    Panel("Policy", "Log-ratio per token", ("log_ratio_per_token",), "Σs over Σ length.", "nats/token"),
    Panel(
        "Policy",
        "KL to π_ref",
        ("kl_ref",),
        "Mean log π_t − log π_ref of a sampled response.",
        "nats",
        advice="If it grows without a gain in the evaluation: fewer iterations, or a lower optimizer.lr.",
    ),
    Panel("Policy", "Implied reward", ("implied_reward_mean",), "Mean of τ·s.", "reward"),
    Panel(
        "Responses",
        "Length",
        ("response_length_mean", "eval_response_length_mean"),
        "Mean response length.",
        "tokens",
        advice="If it grows to the limit: a length reward, or a larger rollout.max_response_length.",
    ),
    Panel(
        "Responses",
        "Truncated",
        ("truncation_rate", "eval_truncation_rate"),
        "Share of responses cut off at the length limit.",
        advice="Above some percent: raise rollout.max_response_length, and check that the template's end of turn "
        "is a stop token.",
    ),
    Panel(
        "Responses",
        "Degenerate groups",
        ("degenerate_group_share",),
        "Share of prompts whose responses all have one reward: they say nothing about order.",
        advice="Above one half, most of an iteration teaches nothing: set rollout.filter=degenerate, take harder or "
        "easier prompts or more samples a prompt.",
    ),
    Panel(
        "Responses",
        "Failed",
        ("reward_errors", "eval_reward_errors", "invalid_sequences"),
        "Responses whose scoring failed, and responses without a token.",
        "responses",
        advice="Must be 0. Read `error` in the rollout file; raise reward.timeout_s if they took too long.",
    ),
    Panel(
        "Rollout against trainer",
        "Mismatch per token",
        ("rollout_log_prob_diff_mean", "rollout_log_prob_diff_max"),
        "|old − rollout| log-prob: how far the sampler and the trainer disagree about the same token.",
        "nats/token",
        advice="In fp32 about 1e-6, in bf16 some hundredths. More: the engine has other weights or another "
        "temperature.",
    ),
    Panel(
        "Rollout against trainer",
        "Mismatch per response",
        ("rollout_log_prob_diff_sequence_mean",),
        "|Σ (old − rollout)|: a bias per token grows with the length here. Compare it with the spread of δ.",
        "nats/response",
        advice="If it is as large as target_std, log-ratios start from the wrong place: see docs/rollouts.md.",
    ),
    Panel(
        "Rollout against trainer",
        "Before the gate, per token",
        ("mismatch_mean", "mismatch_max"),
        "|old − rollout| of all responses of an iteration, those included that are left out.",
        "nats/token",
        advice="One large value in a mixture of experts is a token routed otherwise; many are a broken push.",
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
        advice="If it is above 0 in most iterations, the gate's bound or the engine's dtype doesn't fit.",
    ),
    Panel(
        "Rollout against trainer",
        "Left out",
        ("mismatch_dropped",),
        "Responses that rollout.mismatch left out of training.",
        "responses",
        advice="If it isn't 0, see which responses: they are marked in the report.",
    ),
    Panel(
        "Rollout against trainer",
        "FP8 against the run's dtype",
        ("fp8_log_prob_diff_mean", "fp8_log_prob_diff_max"),
        "The difference that FP8 makes to log-probs of the same responses.",
        "nats/token",
        advice="If it is larger than the mismatch without FP8, try precision=fp8_blockwise or keep more layers "
        "in bf16.",
    ),
    Panel(
        "Rollout against trainer",
        "Effective sample size",
        ("importance_ess",),
        "(Σw)²/Σw² of the importance weights; at best the number of responses of the step.",
        "responses",
        advice="Far below the number of responses: engine and trainer disagree; find out why before you train on.",
    ),
    Panel(
        "Optimizer",
        "Gradient norm",
        ("grad_norm",),
        "Before clipping.",
        advice="Spikes: look at the responses of that iteration, set optimizer.clip_grad and objective.target_clip.",
    ),
    Panel(
        "Optimizer",
        "Learning rate",
        ("lr",),
        "As used in the step.",
        advice="If it is 0 before the end, the schedule is shorter than the run: optimizer.lr_decay_steps.",
    ),
    Panel(
        "Optimizer",
        "Skipped steps",
        ("skipped",),
        "1 if the gradients overflowed and no update was made.",
        advice="Some at the start of fp16 are usual; in a row: the gradients are not finite, stop and look at "
        "the loss.",
    ),
    Panel(
        "Responses",
        "Groups for an iteration",
        ("groups_sampled", "groups_left_out", "groups_given_back"),
        "With rollout.filter: groups that were sampled, left out for having nothing to teach, and not needed, whose "
        "prompts are drawn again.",
        "groups",
        advice="If most are left out, choose other prompts; if many are given back, lower rollout.oversample.",
    ),
    Panel(
        "Responses",
        "Rounds",
        ("rollout_rounds",),
        "How often prompts were drawn for one iteration.",
        "rounds",
        advice="At rollout.max_rounds the iteration may lack groups; a higher rollout.oversample needs fewer rounds.",
    ),
    Panel(
        "Responses",
        "Reward of all that was sampled",
        ("reward_mean_sampled",),
        "With rollout.filter: the mean over all responses, those included that are left out.",
        advice="This one says how well the policy does: reward_mean is of the groups that are trained on alone.",
    ),
    Panel(
        "Time",
        "Stages",
        ("seconds_rollout", "seconds_reward", "seconds_log_probs", "seconds_train", "seconds_sync"),
        "What an iteration spends on each stage.",
        "s/iteration",
        advice="The longest stage is what to speed up: more servers, larger micro-batches, rollout.ahead.",
    ),
    Panel(
        "Time",
        "Speed",
        ("tokens_per_second", "rollout_tokens_per_second"),
        "Tokens of a training step, and response tokens of a rollout, over their seconds.",
        "tokens/s",
        advice="If it falls over time while lengths don't change, look for another process on the machine.",
    ),
    Panel(OTHER, "Responses in a step", ("sequences",), "With at least one token.", "responses"),
    Panel(
        OTHER,
        "Pairs in a step",
        ("pairs", "invalid_pairs"),
        "Pairs trained on, and pairs left out.",
        "pairs",
        advice="If many are invalid, responses of a prompt are equal or have equal rewards.",
    ),
    Panel(
        OTHER,
        "Load-balancing loss",
        ("moe_aux_loss",),
        "Of a mixture of experts, before model.moe_aux_loss_coeff.",
        advice="If it rises steadily the experts are used more and more unevenly: give model.moe_aux_loss_coeff "
        "a small value.",
    ),
    Panel(
        "Rollout against trainer",
        "Before the gate, in all",
        ("mismatch_k3", "mismatch_exceeded", "mismatch_other_version"),
        "KL per token by e^d − 1 − d; 1 if a bound was exceeded; responses of another policy version, "
        "which no bound applies to.",
        advice="mismatch_exceeded = 1: see rollout.mismatch.action.",
    ),
    Panel(
        "Rollout against trainer",
        "Probe",
        ("probe_mismatch",),
        "Largest |engine − trainer| log-prob of a probe that is sampled after each push.",
        "nats/token",
        advice="If it is larger than the mismatch usually is, a push went wrong.",
    ),
    Panel("Time", "Push", ("sync_bytes",), "Weights that were sent to the engine.", "bytes"),
    Panel(
        "Judge",
        "Judge's questions",
        ("judge_questions", "judge_requests", "judge_cache_hits", "judge_failed"),
        "Comparisons asked for, requests sent, answers from the cache, and questions without an answer: ties.",
        "questions",
        advice="judge_failed above 0: see the log; above reward.max_failed_share the run stops.",
    ),
    Panel(
        "Judge",
        "Judge's tokens",
        ("judge_prompt_tokens", "judge_completion_tokens"),
        "What the judge says it read and wrote.",
        "tokens",
    ),
    Panel(
        "Judge",
        "Judge's seconds",
        ("judge_seconds",),
        "Seconds of all requests, added up over those in flight together.",
        "s",
    ),
    Panel(
        "Judge",
        "Pairwise function",
        ("pairwise_function_questions", "pairwise_function_failed", "pairwise_function_seconds"),
        "Calls of reward.function for two responses, those that failed, and their seconds.",
        advice="A failed call counts as a tie: read `error` in the rollout file.",
    ),
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
    return by_section(found)


def by_section(panels: Iterable[Panel]) -> list[Panel]:
    """Sections in the order in which PANELS begins them, OTHER at the end; the order within one stays."""
    sections = [*dict.fromkeys(panel.section for panel in PANELS if panel.section != OTHER), OTHER]
    return sorted(panels, key=lambda panel: sections.index(panel.section))


def _section_of(metric: str) -> str:
    return next((section for prefix, section in _PREFIXES.items() if metric.startswith(prefix)), OTHER)
