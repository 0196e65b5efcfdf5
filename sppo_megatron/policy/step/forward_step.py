"""What Megatron's schedules call for each micro-batch: hidden states -> log-probs of response tokens -> loss.

The last pipeline stage never makes logits: the hidden states of the tokens that predict a response go straight into the
linear log-prob over vocabulary shards.

If the job is told to stop, a stage computes nothing from its next micro-batch on and hands on zeros: the schedule stays
whole, whose stages wait for each other's tensors, and what it gives back is thrown away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor, nn

from sppo_megatron.batch.collate import MicroBatch
from sppo_megatron.cluster.interrupt import RepeatedQuestion
from sppo_megatron.objective.base import Objective
from sppo_megatron.parallel import sequence_sum
from sppo_megatron.policy.model.build import unwrap
from sppo_megatron.policy.model.shared_prompts import shared_prompt_params
from sppo_megatron.policy.step.lm_head import Head


@dataclass
class ForwardStep:
    """Megatron's `forward_step_func`. `finish` is called with the model's output and the micro-batch (last stage).

    shape: (b, s) of a micro-batch over all context-parallel ranks.
    """

    head: Head
    groups: ProcessGroupCollection
    device: torch.device
    finish: Callable[[MicroBatch, Tensor], tuple[Tensor, Any]]
    shape: tuple[int, int]

    def __post_init__(self) -> None:
        self._stopping = RepeatedQuestion(self.device, self.groups.tp, self.groups.dp_cp)  # the ranks of this stage

    def __call__(self, micro_batches: Iterator[MicroBatch], model: nn.Module) -> tuple[Tensor, Callable]:
        if self._stopping.ask():
            return self._nothing(unwrap(model)), lambda output: (output, None)
        batch = next(micro_batches).to(self.device)
        output = model(
            batch.tokens,
            batch.position_ids,
            None,
            packed_seq_params=shared_prompt_params(batch) if batch.segments else _packed_seq_params(batch),
            padding_mask=self._routing_padding(batch, unwrap(model)),
            output_processor=self.head,
            output_processor_context=batch,
        )
        return output, partial(self.finish, batch)

    def _nothing(self, model: GPTModel) -> Tensor:
        """What this stage hands on, with a gradient for what it was handed."""
        if model.pre_process:
            b, s = self.shape
            s //= self.groups.cp.size() * (self.groups.tp.size() if model.config.sequence_parallel else 1)
            dtype = model.config.pipeline_dtype or model.config.params_dtype
            received = torch.zeros(s, b, model.config.hidden_size, dtype=dtype, device=self.device, requires_grad=True)
        else:
            received = model.decoder.input_tensor
        output = received * 0
        return output.float().sum() if model.post_process else output

    def _routing_padding(self, batch: MicroBatch, model: GPTModel) -> Tensor | None:
        """[b, s] as the stage's first layer sees the sequence: tokens that the balance of experts must not count."""
        c = model.config
        if c.num_moe_experts is None or not (c.moe_aux_loss_coeff or c.moe_router_bias_update_rate):
            return None
        if model.config.sequence_parallel and not model.pre_process:  # the first stage cuts it with the embeddings
            tp = self.groups.tp
            return batch.padding.chunk(tp.size(), dim=1)[tp.rank()].contiguous()
        return batch.padding


def _packed_seq_params(batch: MicroBatch) -> PackedSeqParams | None:
    if batch.cu_seqlens is None:
        return None
    # max_seqlen is the longest segment. Were it the total, Megatron would not restart the rotary positions.
    return PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=batch.cu_seqlens,
        cu_seqlens_kv=batch.cu_seqlens,
        cu_seqlens_q_padded=batch.cu_seqlens,
        cu_seqlens_kv_padded=batch.cu_seqlens,
        max_seqlen_q=batch.max_seqlen,
        max_seqlen_kv=batch.max_seqlen,
    )


@dataclass
class TrainingLoss:
    """The `finish` of a training step.

    global_count: `Objective.count` of the whole mini-batch.
    The returned scalar is (local sum / global count) · num_microbatches · data-parallel size: Megatron's
    schedule multiplies it by cp and divides by num_microbatches, its gradient reduction averages over dp · cp. What
    remains is the gradient of the global mean, each context-parallel rank adding that of its own tokens.
    """

    objective: Objective
    groups: ProcessGroupCollection
    global_count: float
    num_microbatches: int
    with_rollout_log_probs: bool

    def __call__(
        self, batch: MicroBatch, output: Tensor | tuple[Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, dict[str, dict[str, Tensor]]]:
        """output: log-probs [n] of `LogProbHead`, or what `SppoLossHead` returned."""
        if isinstance(output, Tensor):
            log_probs = output
            of_tokens = log_probs - batch.old_log_probs
            log_ratio = sequence_sum(of_tokens, batch.sequence_ids, len(batch.lengths), cp_group=self.groups.cp)
            sums = self.objective.loss(of_tokens if self.objective.is_token_level else log_ratio, batch)
        else:
            loss_sum, log_ratio, log_probs = output
            sums = self.objective.loss(log_ratio, batch)._replace(loss_sum=loss_sum)
        scaled = sums.loss_sum / self.global_count * (self.num_microbatches * self.groups.dp.size())
        return scaled, self.objective.diagnostics(log_probs, log_ratio, sums, batch, self.with_rollout_log_probs)


def collect_log_probs(batch: MicroBatch, output: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The `finish` of a forward-only pass: where each value belongs, and the values."""
    return output.new_zeros(()), (batch.token_index, output.detach())
