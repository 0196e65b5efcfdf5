"""GRPO (arXiv 2402.03300): a clipped policy gradient of every token, with advantages from the group's own rewards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from sppo_megatron.objective.base import LossBatch, Needs, Objective
from sppo_megatron.objective.baseline import group_baseline
from sppo_megatron.objective.checks import check_choice
from sppo_megatron.objective.reduction import LossSums

LOG_RATIO_BOUND = 20.0  # nats of one token; exp of more says no more than "broken", and overflows
STD_FLOOR = 1e-6


@dataclass(frozen=True, kw_only=True)
class Grpo(Objective):
    """Mean of −min(ρA, clip(ρ, 1 − clip_low, 1 + clip_high)A) + kl_coef·k3, with ρ = π_θ/π_t of one token.

    A = r − mean r of the group, divided by the group's standard deviation (of a sample, K − 1) if divide_by_std;
    without it as in Dr. GRPO (2503.20783). k3 = π_ref/π_θ − 1 − log(π_ref/π_θ), the paper's estimate of KL(π_θ‖π_ref).
    token_agg: sequence-mean, the paper's mean over responses of the mean over tokens; token-mean, DAPO's (2503.14476)
    mean over all tokens of the mini-batch. clip_high above clip_low is DAPO's, too.
    """

    is_token_level: ClassVar[bool] = True
    means: ClassVar = {"clip_share": ("clipped_sum", "tokens"), "policy_kl": ("policy_kl_sum", "tokens")}

    divide_by_std: bool = True
    clip_low: float = 0.2
    clip_high: float = 0.2
    token_agg: str = "sequence-mean"
    kl_coef: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("objective.token_agg", self.token_agg, ("sequence-mean", "token-mean"))

    @property
    def needs(self) -> Needs:
        return self.shared_needs(reference=self.kl_coef > 0)

    def columns(self, values: Tensor, group_ids: Tensor) -> dict[str, Tensor]:
        advantage = values - group_baseline(values, group_ids, "mean")
        if self.divide_by_std:
            _, group, sizes = torch.unique(group_ids, return_inverse=True, return_counts=True)
            squares = values.new_zeros(len(sizes)).index_add(0, group, advantage.square())
            advantage = advantage / ((squares / (sizes - 1).clamp(min=1)).sqrt() + STD_FLOOR)[group]
        return {"target": advantage}

    def count(self, lengths: np.ndarray) -> float:
        return float(lengths.sum() if self.token_agg == "token-mean" else (lengths > 0).sum())

    def loss(self, log_ratio: Tensor, batch: LossBatch) -> LossSums:
        """log_ratio: [n], of tokens."""
        log_ratio = log_ratio.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)
        ratio, advantage = log_ratio.exp(), batch.columns["target"][batch.sequence_ids]
        clipped = ratio.clamp(1 - self.clip_low, 1 + self.clip_high)
        losses = -torch.minimum(ratio * advantage, clipped * advantage)
        metrics = {"clipped_sum": (clipped * advantage < ratio * advantage).sum()}
        if self.kl_coef > 0:
            assert batch.ref_log_probs is not None
            to_ref = batch.ref_log_probs - batch.old_log_probs - log_ratio
            k3 = to_ref.clamp(max=LOG_RATIO_BOUND).exp() - 1 - to_ref
            losses = losses + self.kl_coef * k3
            metrics["policy_kl_sum"] = k3.detach().sum()
        weight = batch.columns["weight"]
        if self.token_agg == "sequence-mean":
            weight = weight / batch.lengths.clamp(min=1)
        return LossSums((losses * weight[batch.sequence_ids]).sum(), losses.new_tensor(len(losses)), metrics)

    @classmethod
    def check(cls, config: Any, generates: bool) -> Iterator[str]:
        o = config.objective
        if (o.sequence_weight or o.loss_agg_mode) not in ("none", "seq-mean-token-sum"):
            yield "objective.name=grpo weighs tokens by objective.token_agg: set objective.sequence_weight=none"
        if o.baseline not in ("constant", "mean"):
            yield f"objective.baseline={o.baseline} is not of objective.name=grpo, whose baseline is the group's mean"
