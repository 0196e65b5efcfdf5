"""Supervised fine-tuning: the cross-entropy of what somebody else answered."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from sppo_megatron.objective.base import LossBatch, Objective
from sppo_megatron.objective.checks import check_choice
from sppo_megatron.objective.reduction import LossSums


@dataclass(frozen=True, kw_only=True)
class Sft(Objective):
    """Mean of −log π_θ of the tokens that count, in nats.

    token_agg: token-mean, over all tokens of the mini-batch; sequence-mean, over responses of the mean over their
    tokens.
    """

    is_token_level: ClassVar[bool] = True
    means: ClassVar = {"nll_per_token": ("nll_sum", "tokens")}

    token_agg: str = "sequence-mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("objective.token_agg", self.token_agg, ("sequence-mean", "token-mean"))

    def columns(self, values: Tensor, group_ids: Tensor) -> dict[str, Tensor]:
        """No target: every response is one."""
        return {"target": torch.zeros_like(values)}

    def count(self, lengths: np.ndarray) -> float:
        return float(lengths.sum() if self.token_agg == "token-mean" else (lengths > 0).sum())

    def loss(self, log_ratio: Tensor, batch: LossBatch) -> LossSums:
        """log_ratio: [n], of tokens."""
        losses = -(log_ratio + batch.old_log_probs)
        weight = batch.columns["weight"]
        if self.token_agg == "sequence-mean":
            weight = weight / batch.lengths.clamp(min=1)
        metrics = {"nll_sum": losses.detach().sum()}
        return LossSums((losses * weight[batch.sequence_ids]).sum(), losses.new_tensor(len(losses)), metrics)

    @classmethod
    def check(cls, config: Any, generates: bool) -> Iterator[str]:
        o = config.objective
        if generates:
            yield "objective.name=sft learns from given responses: set rollout.engine=demonstrations, or replay"
        if config.rollout.temperature != 1.0:
            yield f"objective.name=sft knows no temperature: set rollout.temperature={config.rollout.temperature} to 1"
        if (o.sequence_weight or o.loss_agg_mode) not in ("none", "seq-mean-token-sum"):
            yield "objective.name=sft weighs tokens by objective.token_agg: set objective.sequence_weight=none"
