"""The configured objective as a function of complete sequence log-ratios and one micro-batch."""

from __future__ import annotations

import torch
from torch import Tensor

from sppo_megatron.batch.micro_batches import MicroBatch
from sppo_megatron.config import ObjectiveConfig
from sppo_megatron.objective import pairwise_loss, resolve_eta, sppo_loss
from sppo_megatron.objective.reduction import LossSums
from sppo_megatron.policy.step.forward_step import Loss
from sppo_megatron.policy.step.lm_head import RegressionTerms


def regression_terms(objective: ObjectiveConfig) -> RegressionTerms | None:
    """What the regression loss is made of besides s, for a head that computes it; None for the pairwise family."""
    if objective.pairwise is not None:
        return None
    scale = 1 / (2 * resolve_eta(objective.eta, objective.tau)) if objective.loss_scale == "kimi" else 1.0

    def terms(batch: MicroBatch) -> tuple[Tensor, Tensor]:
        valid = batch.lengths > 0
        return torch.where(valid, batch.target, 0), torch.where(valid, batch.weight * scale, 0)

    return terms


def build_loss(objective: ObjectiveConfig) -> Loss:
    """The regression loss, or the pairwise one, whose units are (winner, loser): even and odd sequences."""
    eta = resolve_eta(objective.eta, objective.tau)

    def regression(log_ratio: Tensor, batch: MicroBatch) -> LossSums:
        return sppo_loss(
            log_ratio,
            batch.target,
            valid=batch.lengths > 0,
            weight=batch.weight,
            loss_scale=objective.loss_scale,
            eta=eta,
            validate=False,
        )

    def pairwise(log_ratio: Tensor, batch: MicroBatch) -> LossSums:
        assert objective.pairwise is not None
        valid = batch.lengths > 0
        return pairwise_loss(
            log_ratio[0::2],
            log_ratio[1::2],
            objective.pairwise,
            beta=objective.beta,
            eta=eta if objective.beta is None else None,
            win_rate_w=batch.win_rate[0::2],
            win_rate_l=batch.win_rate[1::2],
            preference=batch.preference[0::2],
            reward_w=batch.reward[0::2],
            reward_l=batch.reward[1::2],
            ref_log_ratio_w=batch.ref_log_ratio[0::2],
            ref_log_ratio_l=batch.ref_log_ratio[1::2],
            ref_coef=objective.ref_coef,
            valid=valid[0::2] & valid[1::2],
            weight=batch.weight[0::2] * batch.weight[1::2],  # two draws: importance weights multiply
            validate=False,
        )

    return regression if objective.pairwise is None else pairwise
