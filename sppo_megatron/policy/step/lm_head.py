"""The LM head as GPTModel's `output_processor`: log-probs of response tokens, or the loss itself, instead of logits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from torch import Tensor, nn

from sppo_megatron.batch.collate import MicroBatch
from sppo_megatron.config import Config
from sppo_megatron.objective.base import Objective
from sppo_megatron.parallel import LinearSppoLoss, linear_sppo_loss, vocab_parallel_linear_log_probs


@dataclass(frozen=True)
class Head(ABC):
    """What both heads need.

    vocab_size: the true size; columns beyond it get no probability. temperature: divides the logits, as in sampling.
    chunk_size, kernels: as in `vocab_parallel_linear_log_probs`.
    """

    groups: ProcessGroupCollection
    vocab_size: int
    temperature: float
    sequence_parallel: bool
    chunk_size: int | None = None
    kernels: str = "auto"

    def __call__(
        self, *, hidden_states: Tensor, output_layer: nn.Module, output_weight: Tensor | None, context: MicroBatch, **_
    ) -> Any:
        """hidden_states [s, b, h] -> what `compute` returns for the rows that predict a response token."""
        for hook in output_layer._forward_pre_hooks.values():
            # The weight is read without calling the module: what waits for the distributed optimizer's overlapped
            # parameter all-gather must be run by hand.
            hook(output_layer, ())
        if self.sequence_parallel:
            # The gradient that comes back is complete on every rank: it is cut, not summed again.
            hidden_states = gather_from_sequence_parallel_region(
                hidden_states, tensor_parallel_output_grad=False, group=self.groups.tp
            )
        hidden = hidden_states.flatten(0, 1).index_select(0, context.rows)
        return self.compute(
            hidden, cast(Tensor, output_layer.weight if output_weight is None else output_weight), context
        )

    @abstractmethod
    def compute(self, hidden: Tensor, weight: Tensor, batch: MicroBatch) -> Any:
        """hidden: [n, h], the rows of the micro-batch's n response tokens. weight: [vocabulary/tp, h]."""

    @property
    def options(self) -> dict[str, Any]:
        """Arguments that the log-prob and the loss function share."""
        return {
            "tp_group": _if_split(self.groups.tp),
            "vocab_size": self.vocab_size,
            "temperature": self.temperature,
            "chunk_size": self.chunk_size,
            "kernels": self.kernels,
            "gradient_accumulation_fusion": True,
        }


@dataclass(frozen=True)
class LogProbHead(Head):
    """Any loss can follow; a forward pass alone keeps nothing."""

    with_entropy: bool = False

    def compute(self, hidden: Tensor, weight: Tensor, batch: MicroBatch) -> Tensor:
        """[n] fp32 nats, or [2, n] with the entropy below the log-probs."""
        result = vocab_parallel_linear_log_probs(
            hidden, weight, batch.labels, with_entropy=self.with_entropy, **self.options
        )
        return torch.stack(result) if isinstance(result, tuple) else result


@dataclass(frozen=True, kw_only=True)
class SppoLossHead(Head):
    """The regression loss with every logit computed once. logits_budget: bytes of logits that may be kept."""

    objective: Objective
    logits_budget: int

    def compute(self, hidden: Tensor, weight: Tensor, batch: MicroBatch) -> LinearSppoLoss:
        """(loss_sum, log_ratio [S], log_probs [n])."""
        options = self.options | {"cp_group": _if_split(self.groups.cp), "logits_budget": self.logits_budget}
        return linear_sppo_loss(
            hidden,
            weight,
            batch.labels,
            batch.old_log_probs,
            batch.sequence_ids,
            *self.objective.regression(batch),  # target, coefficient
            lengths=batch.response_lengths,
            **options,
        )


def build_heads(
    run: Config, groups: ProcessGroupCollection, vocab_size: int, objective: Objective
) -> tuple[Head, Head]:
    """For log-probs without gradients, and for training."""
    shared: dict[str, Any] = {
        "groups": groups,
        "vocab_size": vocab_size,
        "temperature": run.rollout.temperature,
        "sequence_parallel": run.parallelism.sequence_parallel,
        "chunk_size": run.train.log_prob_chunk_size,
        "kernels": run.train.log_prob_kernels,
    }
    log_probs = LogProbHead(**shared, with_entropy=True)
    if not objective.is_regression or not run.train.fused_loss:
        return log_probs, LogProbHead(**shared)
    return log_probs, SppoLossHead(
        **shared, objective=objective, logits_budget=int(run.train.logits_budget_mib * 2**20)
    )


def _if_split(group: dist.ProcessGroup) -> dist.ProcessGroup | None:
    return group if group.size() > 1 else None
