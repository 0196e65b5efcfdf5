"""The charts of what a run achieves: rewards, evaluations, win rates."""

from __future__ import annotations

from sppo_report.panel import Panel

OUTCOME = (
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
        "Evaluation, reward",
        ("eval_reward_mean", "eval_reward_mean_low", "eval_reward_mean_high"),
        "Held-out prompts: mean reward, and the 95% interval over prompts.",
        advice="If the reward of training rises and this doesn't, the reward is being gamed, or the prompts are too "
        "few or unlike those held out.",
    ),
    Panel(
        "Outcome",
        "Evaluation, right answers",
        ("eval_exact_match", "eval_exact_match_low", "eval_exact_match_high"),
        "Held-out prompts: the share of answers that the reward calls right, and the 95% interval over prompts.",
        advice="Changes inside of the interval are chance: take more held-out prompts.",
    ),
    Panel(
        "Outcome",
        "Evaluation, pass@k",
        ("eval_pass_at_*",),
        "Held-out prompts that one of k answers solves, for each k, without bias, and the 95% interval.",
        advice="If k = 1 rises while the largest k falls, answers lose variety: the policy sharpens what it could do "
        "before. Lower optimizer.lr, or train on harder prompts.",
    ),
    Panel(
        "Outcome",
        "Evaluation, maj@k",
        ("eval_maj_at_*",),
        "Held-out prompts whose most frequent answer of k is right, for each k, and the 95% interval.",
        advice="Below pass@1, the policy's favourite answers are the wrong ones: look at the reward and at the data.",
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
)
