"""The regression family, (s − δ)²: SPPO (arXiv 2405.00675), Kimi k1.5 (2501.12599), by reward, baseline and scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sppo_megatron.objective.base import LossBatch, Objective
from sppo_megatron.objective.reduction import LossSums
from sppo_megatron.objective.regression import sppo_loss


@dataclass(frozen=True, kw_only=True)
class Sppo(Objective):
    """loss_scale: sppo (the plain square) or kimi (times τ/2)."""

    is_regression: ClassVar[bool] = True

    loss_scale: str = "sppo"

    def regression(self, batch: LossBatch) -> tuple[Tensor, Tensor]:
        valid = batch.lengths > 0
        scale = 1 / (2 * self.eta) if self.loss_scale == "kimi" else 1.0
        columns = batch.columns
        return torch.where(valid, columns["target"], 0), torch.where(valid, columns["weight"] * scale, 0)

    def loss(self, log_ratio: Tensor, batch: LossBatch) -> LossSums:
        return sppo_loss(
            log_ratio,
            batch.columns["target"],
            valid=batch.lengths > 0,
            weight=batch.columns["weight"],
            loss_scale=self.loss_scale,
            eta=self.eta,
            validate=False,
        )
