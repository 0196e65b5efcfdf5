"""GVPO (arXiv 2504.19599): a group's implicit rewards, less their mean, are regressed onto its rewards, less theirs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sppo_megatron.objective.base import LossBatch, Objective, Units
from sppo_megatron.objective.baseline import group_baseline
from sppo_megatron.objective.reduction import LossSums
from sppo_megatron.objective.regression import regression_target


@dataclass(frozen=True, kw_only=True)
class Gvpo(Objective):
    """Mean over groups of 1/(2(K − 1)) Σ_i [β(s_i − s̄) − (r_i − r̄)]², with the paper's β = τ = 1/η.

    The normaliser of the optimal policy is the same for all responses of a prompt, so it falls out of s_i − s̄. A unit
    is a whole group; responses without a token count neither in the sum nor in s̄ and K.
    """

    units: ClassVar[Units] = Units.GROUP

    def columns(self, values: Tensor, group_ids: Tensor) -> dict[str, Tensor]:
        baseline = group_baseline(values, group_ids, "mean")
        return {"target": regression_target(values, baseline, self.eta, clip=self.target_clip)}

    def count(self, lengths: Any) -> float:
        return float((lengths > 0).any(axis=1).sum())

    def loss(self, log_ratio: Tensor, batch: LossBatch) -> LossSums:
        valid = batch.lengths > 0
        s, delta = torch.where(valid, log_ratio, 0), torch.where(valid, batch.columns["target"], 0)
        sizes = torch.zeros_like(s).index_add(0, batch.units, valid.to(s.dtype))
        centred = s - (torch.zeros_like(s).index_add(0, batch.units, s) / sizes.clamp(min=1))[batch.units]
        squares = torch.where(valid, (centred - delta).square() * batch.columns["weight"], 0)
        share = 1 / (2 * self.eta**2 * (sizes - 1).clamp(min=1))[batch.units]
        return LossSums((squares * share).sum(), (sizes > 0).sum().to(s.dtype), {})

    @classmethod
    def check(cls, config: Any, generates: bool) -> Iterator[str]:
        o, k = config.objective, config.rollout.num_samples_per_prompt
        if o.baseline not in ("constant", "mean"):
            yield f"objective.baseline={o.baseline} is not of objective.name=gvpo, whose baseline is the group's mean"
        if (o.sequence_weight or o.loss_agg_mode) not in ("none", "seq-mean-token-sum"):
            yield "objective.name=gvpo takes whole responses: set sequence_weight=none"
        packed = config.train.max_tokens_per_micro_batch is not None
        for key in ("minibatch_size",) if packed else ("minibatch_size", "micro_batch_size"):
            size = getattr(config.train, key)
            if generates and size is not None and size % k:
                yield f"train.{key}={size} must be a multiple of rollout.num_samples_per_prompt={k}: groups stay whole"
