"""KTO (arXiv 2402.01306) with the reference point 0: single answers that are good or bad."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sppo_megatron.objective.base import LossBatch, Objective
from sppo_megatron.objective.reduction import LossSums, weighted_sum


@dataclass(frozen=True, kw_only=True)
class Kto(Objective):
    """Mean of 1 − σ(βs) for responses whose reward is above ½, and of 1 − σ(−βs) for the others.

    The paper subtracts an estimate of the KL divergence from βs, which needs each prompt with another one's answer; it
    is 0 as long as the policy is near its reference, and it is left at 0 here, as in APO-zero (2408.06266).
    """

    beta: float | None = None

    def columns(self, values: Tensor, group_ids: Tensor) -> dict[str, Tensor]:
        """target: ½ for a good response, −½ for a bad one."""
        return {"target": (values > 0.5).to(values.dtype) - 0.5}

    def loss(self, log_ratio: Tensor, batch: LossBatch) -> LossSums:
        if self.beta is None:
            raise ValueError("KTO needs a beta")
        valid = batch.lengths > 0
        side = 2 * batch.columns["target"].to(log_ratio.dtype)
        losses = torch.sigmoid(-self.beta * side * log_ratio)  # 1 − σ(x) = σ(−x)
        loss_sum = weighted_sum(torch.where(valid, losses, 0), valid, batch.columns["weight"], validate=False)
        return LossSums(loss_sum, valid.sum().to(loss_sum.dtype), {})

    @classmethod
    def check(cls, config: Any, generates: bool) -> Iterator[str]:
        if config.objective.beta is None:
            yield "objective.name=kto needs objective.beta"
