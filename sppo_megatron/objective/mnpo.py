"""MNPO (arXiv 2509.23102): INPO against several policies at once, those of earlier runs among them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sppo_megatron.objective.base import START, LossBatch, Needs, Objective, Units
from sppo_megatron.objective.pairs import Pairs, check_pairs
from sppo_megatron.objective.reduction import LossSums, valid_rows, weighted_sum


@dataclass(frozen=True, kw_only=True)
class Mnpo(Objective):
    """(h − 1/(2η))², h = log π_θ(w)/π_θ(l) − Σ_j λ_j log π_j(w)/π_j(l), over the best and the worst of a group.

    The π_j are the policy that the run started from (λ = ref_coef), those of `opponents`, [{path: a folder in Hugging
    Face format, weight: λ}, ...], and π_t with what is left to 1. eta: the paper's, an inverse step size. Without
    opponents it is INPO.
    """

    units: ClassVar[Units] = Units.BEST_WORST
    means: ClassVar = Pairs.means

    ref_coef: float = 0.0
    opponents: Sequence[Mapping[str, Any]] = ()

    @property
    def needs(self) -> Needs:
        return self.shared_needs(reference=self._share > 0)

    @property
    def references(self) -> Mapping[str, float]:
        """λ of each policy but π_t, as shares of their sum."""
        weights = {START: self.ref_coef, **{each["path"]: float(each["weight"]) for each in self.opponents}}
        return {path: weight / self._share for path, weight in weights.items() if weight > 0}

    @property
    def _share(self) -> float:
        return self.ref_coef + math.fsum(each["weight"] for each in self.opponents)

    def loss(self, log_ratio: Tensor, batch: LossBatch) -> LossSums:
        valid = batch.lengths[0::2] * batch.lengths[1::2] > 0
        valid = valid_rows(valid, "log_ratio", log_ratio[0::2], validate=False)
        s = torch.where(valid, log_ratio[0::2] - log_ratio[1::2], 0)
        u = batch.columns["ref_log_ratio"]  # log π_t − the weighted mean of the log π_j
        h = s + self._share * (u[0::2] - u[1::2])
        weight = batch.columns["weight"]
        loss_sum = weighted_sum((h - 1 / (2 * self.eta)).square(), valid, weight[0::2] * weight[1::2], validate=False)
        pairs = valid.sum().to(loss_sum.dtype)
        metrics = {"pairs": pairs, "pair_margin_sum": s.detach().sum(), "pair_correct_sum": (s > 0).sum()}
        return LossSums(loss_sum, pairs, metrics)

    @classmethod
    def check(cls, config: Any, generates: bool) -> Iterator[str]:
        o = config.objective
        if any(set(each) != {"path", "weight"} for each in o.opponents):
            yield "objective.opponents is [{path: folder in Hugging Face format, weight: number}, ...]"
            return
        weights = [o.ref_coef, *(each["weight"] for each in o.opponents)]
        if len({each["path"] for each in o.opponents}) < len(o.opponents):
            yield "objective.opponents names a path twice: add their weights"
        if min(weights) < 0 or math.fsum(weights) > 1 + 1e-9:
            yield (
                f"objective.ref_coef={o.ref_coef:g} and the weights of objective.opponents are shares: each must be at "
                "least 0, and their sum at most 1; π_t gets what is left"
            )
        if (o.sequence_weight or o.loss_agg_mode) not in ("none", "seq-mean-token-sum", "token-mean"):
            yield "sequence weights are for single responses: with objective.name=mnpo, set sequence_weight=none"
        yield from check_pairs(config)
