"""The objective as pure tensor maths: torch in, torch out, no process groups and no configuration."""

from sppo_megatron.objective.baseline import BASELINES, group_baseline
from sppo_megatron.objective.confidence import clustered_interval, clustered_share_interval, wilson_interval
from sppo_megatron.objective.diagnostics import (
    degenerate_group_sums,
    finalize_diagnostics,
    regression_diagnostics,
    token_diagnostics,
)
from sppo_megatron.objective.importance import (
    rollout_importance_weights,
    truncated_importance_weight,
)
from sppo_megatron.objective.length_reward import length_reward
from sppo_megatron.objective.mismatch import Mismatch, rollout_mismatch
from sppo_megatron.objective.pairwise import PAIRWISE_KINDS, pairwise_loss
from sppo_megatron.objective.reduction import LOSS_AGG_MODES, SEQUENCE_WEIGHTS, LossSums, sequence_weights
from sppo_megatron.objective.regression import (
    compute_sppo_loss,
    regression_target,
    resolve_eta,
    sequence_log_ratio,
    sppo_loss,
)
from sppo_megatron.objective.win_rate import (
    ESTIMATORS,
    check_preference,
    gated_preference,
    preference_from_scores,
    win_rates,
)

__all__ = [
    "BASELINES",
    "ESTIMATORS",
    "LOSS_AGG_MODES",
    "PAIRWISE_KINDS",
    "SEQUENCE_WEIGHTS",
    "LossSums",
    "Mismatch",
    "check_preference",
    "clustered_interval",
    "clustered_share_interval",
    "compute_sppo_loss",
    "degenerate_group_sums",
    "finalize_diagnostics",
    "gated_preference",
    "group_baseline",
    "length_reward",
    "pairwise_loss",
    "preference_from_scores",
    "regression_diagnostics",
    "regression_target",
    "resolve_eta",
    "rollout_importance_weights",
    "rollout_mismatch",
    "sequence_log_ratio",
    "sequence_weights",
    "sppo_loss",
    "token_diagnostics",
    "truncated_importance_weight",
    "wilson_interval",
    "win_rates",
]
