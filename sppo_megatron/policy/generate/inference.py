"""Forward passes outside of Megatron's training schedules: tokens in, logits out, in every layout that trains."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.inference.contexts import StaticInferenceContext
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.models.gpt import GPTModel
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from sppo_megatron.policy.model.fp8 import without_fp8
from sppo_megatron.policy.model.rotary import rotary_embeddings


@contextlib.contextmanager
def inference_layout(models: Sequence[GPTModel], config: TransformerConfig) -> Iterator[None]:
    """Evaluation mode, with sequence and context parallelism off: one token can't be split over ranks.

    FP8 is off, too: it takes whole blocks of tokens.
    """
    with contextlib.ExitStack() as undo:
        undo.enter_context(without_fp8(config))
        for model in models:
            undo.callback(model.train, model.training)
            model.eval()
            for module in model.modules():
                for name in ("sequence_parallel", "scatter_to_sequence_parallel", "reduce_scatter_embeddings"):
                    if getattr(module, name, False) is True:
                        _set(undo, module, name, False)
                attention = getattr(module, "core_attention", None)  # ours or Transformer Engine's
                if getattr(attention, "cp_group", None) is not None:
                    _set(undo, attention, "cp_group", None)
            for rotary in rotary_embeddings(model):
                _set(undo, rotary, "cp_group", None)
        _set(undo, config, "sequence_parallel", False)
        _set(undo, config, "context_parallel_size", 1)
        # Rotary tables are cached by length and would be served to the other mode.
        RotaryEmbedding.forward.cache_clear()
        undo.callback(RotaryEmbedding.forward.cache_clear)
        yield


def forward_logits(
    models: Sequence[GPTModel],
    config: TransformerConfig,
    groups: ProcessGroupCollection,
    tokens: Tensor,
    context: StaticInferenceContext,
    *,
    all_positions: bool = False,
) -> Tensor | None:
    """Tokens [b, s] through all stages and virtual stages, inside `inference_layout`; the context moves on by s.

    Returns logits with padded columns, on the last pipeline stage alone (else None): [b, V] of the last position, or
    [b, s, V]. Every rank of the pipeline and of the tensor- and expert-parallel groups calls it together; expert-
    parallel ranks may bring different tokens.
    """
    pp = groups.pp
    rank, size = pp.rank(), pp.size()
    batch, length = tokens.shape
    positions = torch.arange(length, device=tokens.device) + context.sequence_len_offset
    head = _all_logits if all_positions else _last_position_logits
    output: Tensor | None = None
    for model in models:
        if not model.pre_process:
            hidden = torch.empty(length, batch, config.hidden_size, dtype=config.params_dtype, device=tokens.device)
            dist.recv(hidden, group=pp, group_src=(rank - 1) % size)
            model.set_input_tensor(hidden)
        output = model(
            tokens,
            positions.expand(batch, -1),
            None,
            inference_context=context,
            output_processor=head if model.post_process else None,
        )
        if not model.post_process:
            dist.send(output.contiguous(), group=pp, group_dst=(rank + 1) % size)
            output = None
    context.sequence_len_offset += length
    return output


def _all_logits(*, hidden_states: Tensor, output_layer: nn.Module, output_weight: Tensor | None, **_: Any) -> Tensor:
    logits, _bias = output_layer(hidden_states, weight=output_weight, runtime_gather_output=True)
    return logits.transpose(0, 1)


def _last_position_logits(*, hidden_states: Tensor, **arguments: Any) -> Tensor:
    return _all_logits(hidden_states=hidden_states[-1:], **arguments)[:, 0]


def _set(undo: contextlib.ExitStack, owner: Any, name: str, value: Any) -> None:
    undo.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, value)
