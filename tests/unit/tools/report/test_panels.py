"""Panels: every metric that the objective defines has a place and a meaning, and none is lost."""

import torch

from sppo_megatron.objective import finalize_diagnostics
from sppo_megatron.objective.diagnostics import degenerate_group_sums, regression_diagnostics, token_diagnostics
from sppo_report.panel_table import PANELS
from sppo_report.panels import panels_for


def every_metric():
    """All that finalize_diagnostics returns, from the real sums."""
    column, tokens = torch.tensor([0.1, -0.2, 0.3]), torch.randn(3, 4)
    sums, maxima = regression_diagnostics(
        column,
        torch.tensor([1.0, -1.0, 0.5]),
        torch.tensor([4.0, 4.0, 4.0]),
        tau=1.0,
        rewards=column,
        win_rate=column,
        truncated=column,
        importance_weight=column,
        rollout_log_ratio=column,
    )
    token_sums, token_maxima = token_diagnostics(
        tokens, tokens + 0.1, torch.ones(3, 4), entropy=tokens, rollout_log_probs=tokens
    )
    pairs = dict.fromkeys(("pairs", "invalid_pairs", "pair_margin_sum", "pair_correct_sum"), 1.0)
    groups = degenerate_group_sums(column, torch.tensor([0, 0, 1]))
    return finalize_diagnostics(sums | token_sums | groups | pairs, maxima | token_maxima)


def test_every_metric_of_the_objective_is_shown_with_its_meaning():
    shown = {name for panel in PANELS if panel.meaning for name in panel.metrics}
    metrics = every_metric()
    assert len(metrics) > 25
    assert metrics.keys() <= shown


def test_a_metric_is_in_one_panel_only():
    names = [name for panel in PANELS for name in panel.metrics]
    assert len(names) == len(set(names))


def test_panels_that_have_something_to_show():
    found = panels_for(["loss", "kl_k2", "eval_win_rate", "my_metric", "seconds_queue"])
    assert [(panel.section, panel.title) for panel in found] == [
        ("Outcome", "eval_win_rate"),
        ("Regression", "Loss"),
        ("Policy", "KL per response"),
        ("Time", "seconds_queue"),
        ("Other", "my_metric"),
    ]
    assert panels_for([]) == []


def test_numbered_metrics_and_those_of_sources_share_a_panel():
    logged = ["eval_pass_at_16/gsm8k", "eval_pass_at_16", "eval_pass_at_2", "eval_reward_mean/gsm8k", "reward_mean/a"]
    assert [(panel.title, panel.metrics) for panel in panels_for(logged)] == [
        ("Reward", ("reward_mean/a",)),
        ("Evaluation, reward", ("eval_reward_mean/gsm8k",)),
        ("Evaluation, pass@k", ("eval_pass_at_2", "eval_pass_at_16", "eval_pass_at_16/gsm8k")),
    ]
