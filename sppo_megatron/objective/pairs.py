"""The pairwise family: `pairwise_loss` of each group's best and worst response, or of a human and a sampled one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from sppo_megatron.objective.base import LossBatch, Needs, Objective, Units
from sppo_megatron.objective.pairwise import PAIRWISE_KINDS, pairwise_loss
from sppo_megatron.objective.reduction import LossSums


@dataclass(frozen=True, kw_only=True)
class Pairs(Objective):
    """pairwise: a kind of `pairwise_loss`. A unit is (winner, loser): even and odd sequences of a micro-batch."""

    units: ClassVar[Units] = Units.BEST_WORST
    means: ClassVar = {
        "pair_margin_mean": ("pair_margin_sum", "pairs"),
        "pair_accuracy": ("pair_correct_sum", "pairs"),
    }

    pairwise: str
    beta: float | None = None

    @property
    def pull(self) -> float:
        """How much the log-ratio against π_ref counts."""
        return 0.0

    def loss(self, log_ratio: Tensor, batch: LossBatch) -> LossSums:
        valid, columns = batch.lengths > 0, batch.columns
        pair = {
            f"{name}_{end}": columns[name][first::2]
            for name in ("win_rate", "reward", "ref_log_ratio")
            for end, first in (("w", 0), ("l", 1))
        }
        return pairwise_loss(
            log_ratio[0::2],
            log_ratio[1::2],
            self.pairwise,
            beta=self.beta,
            eta=self.eta if self.beta is None else None,
            preference=columns["preference"][0::2],
            ref_coef=self.pull,
            valid=valid[0::2] & valid[1::2],
            weight=columns["weight"][0::2] * columns["weight"][1::2],  # two draws: importance weights multiply
            validate=False,
            **pair,
        )

    @classmethod
    def check(cls, config: Any, generates: bool) -> Iterator[str]:
        o = config.objective
        needed = PAIRWISE_KINDS[o.pairwise]
        if "beta" in needed and o.beta is None:
            yield f"objective.pairwise={o.pairwise} needs objective.beta"
        if "beta" not in needed and o.beta is not None:
            yield f"objective.pairwise={o.pairwise} takes objective.eta: set objective.beta=null"
        if "win_rate_w" in needed and o.reward != "win_rate":
            yield f"objective.pairwise={o.pairwise} regresses onto win rates: set objective.reward=win_rate"
        if (o.sequence_weight or o.loss_agg_mode) not in ("none", "seq-mean-token-sum", "token-mean"):
            yield "sequence weights are for single responses: with objective.pairwise, set sequence_weight=none"
        yield from check_pairs(config)


@dataclass(frozen=True, kw_only=True)
class Spin(Pairs):
    """SPIN (arXiv 2401.01335): the human response of a prompt wins against each response of π_t."""

    units: ClassVar[Units] = Units.HUMAN_VS_SAMPLE


@dataclass(frozen=True, kw_only=True)
class Inpo(Pairs):
    """INPO (arXiv 2407.00617). eta: the paper's, an inverse step size. ref_coef: its τ/η, the pull towards π_ref."""

    ref_coef: float = 0.0

    @property
    def pull(self) -> float:
        return self.ref_coef

    @property
    def needs(self) -> Needs:
        return self.shared_needs(reference=self.ref_coef > 0)


def check_pairs(config: Any) -> Iterator[str]:
    """What any objective of pairs asks of the mini-batches."""
    packed = config.train.max_tokens_per_micro_batch is not None  # then micro_batch_size is not read
    for key in ("minibatch_size",) if packed else ("minibatch_size", "micro_batch_size"):
        size = getattr(config.train, key)
        if size is not None and size % 2:
            yield f"train.{key}={size} must be even: a pair is two sequences. Set it to {size + 1}"
