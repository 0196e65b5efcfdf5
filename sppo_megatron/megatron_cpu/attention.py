"""Core attention in plain torch: grouped queries, windows, packed (THD) sequences, context parallelism, a cache.

Stands in for Transformer Engine's attention if that isn't installed, with the same layouts: under context
parallelism every segment is cut into 2·cp chunks and rank r holds chunks r and 2·cp−1−r. Keys and values are gathered
over the context-parallel group, so a rank attends from its own queries to the whole sequence.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.utils import (
    ensure_metadata_has_dp_cp_group,
    is_layer_window_attention,
    make_sharded_tensors_for_checkpoint,
)
from torch import Tensor, nn

from sppo_megatron.parallel import zigzag_indices


class _GatherSequence(torch.autograd.Function):
    """[s, ...] on each rank -> [cp·s, ...] in rank order; the gradient is summed over the ranks and cut again."""

    @staticmethod
    def forward(ctx, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        gathered = x.new_empty((group.size() * x.shape[0], *x.shape[1:]))
        dist.all_gather_into_tensor(gathered, x.contiguous(), group=group)
        return gathered

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        grad = grad.contiguous()
        dist.all_reduce(grad, group=ctx.group)
        return grad.chunk(ctx.group.size(), 0)[ctx.group.rank()], None


class TorchAttention(MegatronModule):
    """softmax(q kᵀ / √d) v by `scaled_dot_product_attention`.

    With `config.softmax_type=learnable` each head has a logit `softmax_offset` that takes part in the softmax and gives
    nothing (an attention sink).

    query [sq, b, heads/tp, d], key [sk, b, groups/tp, d], value [sk, b, groups/tp, d_v] -> [sq, b, heads/tp · d_v], all
    without b if packed. With a window (`config.window_size`, `config.window_attn_skip_freq`) a query sees its
    own key and window_size[0] before it. `cp_group` is the group that keys and values are gathered over; None switches
    context parallelism off (generation).
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: ProcessGroupCollection | None = None,
        k_channels: int | None = None,
        v_channels: int | None = None,
    ):
        super().__init__(config=config)
        assert pg_collection is not None
        if attention_dropout or config.attention_dropout:
            raise ValueError("TorchAttention has no dropout: π_θ must be a function")
        self.attn_mask_type = attn_mask_type
        self.softmax_scale = softmax_scale or 1.0 / math.sqrt(config.kv_channels)
        self.is_latent = v_channels is not None  # multi-latent attention takes packed results without b
        slides = is_layer_window_attention(config.window_size, config.window_attn_skip_freq, layer_number)
        self.keys_before = config.window_size[0] if slides else None
        self.softmax_offset: nn.Parameter | None = None
        if config.softmax_type == "learnable":
            self.tp_group = pg_collection.tp
            heads = config.num_attention_heads // self.tp_group.size()
            self.softmax_offset = nn.Parameter(torch.zeros(heads, dtype=config.params_dtype))
        self.cp_group: dist.ProcessGroup | None = pg_collection.cp if config.context_parallel_size > 1 else None

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> Tensor:
        """attention_mask is not read: causality follows from attn_mask_type and the positions."""
        if packed_seq_params is not None:
            query, key, value = (t.unsqueeze(1) for t in (query, key, value))
            boundaries = packed_seq_params.cu_seqlens_q
            lengths = boundaries.diff().tolist()
        else:
            lengths = [query.shape[0] * (1 if self.cp_group is None else self.cp_group.size())]
        causal = "causal" in (attn_mask_type or self.attn_mask_type).name
        if causal and query.shape[0] != key.shape[0]:
            raise ValueError(
                f"causal attention of {query.shape[0]} queries over {key.shape[0]} keys: prefill a cache in one pass"
            )
        if self.cp_group is not None:
            out = self._attend_over_context(query, key, value, lengths)
        elif len(lengths) > 1:
            segments = (t.split(lengths) for t in (query, key, value))
            out = torch.cat([self._attend(q, k, v, causal) for q, k, v in zip(*segments, strict=True)])
        else:
            out = self._attend(query, key, value, causal)
        return out.squeeze(1).flatten(1) if self.is_latent and packed_seq_params is not None else out.flatten(2)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        """The last query is at the position of the last key."""
        if self.keys_before is None and self.softmax_offset is None:
            return self._softmax(q, k, v, causal)
        keys = torch.arange(len(k), device=q.device)
        return self._softmax(q, k, v, mask=self._visible(keys[len(k) - len(q) :], keys))

    def _visible(self, queries: Tensor, keys: Tensor) -> Tensor:
        """[sq, sk]: which keys a query sees, by positions in the sequence."""
        behind = queries[:, None] - keys[None, :]
        return behind >= 0 if self.keys_before is None else (behind >= 0) & (behind <= self.keys_before)

    def _softmax(self, q: Tensor, k: Tensor, v: Tensor, causal: bool = False, mask: Tensor | None = None) -> Tensor:
        q, k, v = (t.permute(1, 2, 0, 3) for t in (q, k, v))  # [b, heads, s, d]
        if self.softmax_offset is not None:  # one more key, whose value is 0
            assert mask is not None
            k, v = (F.pad(t, (0, 0, 0, 1)) for t in (k, v))
            sinks = self.softmax_offset[:, None, None].expand(-1, len(mask), 1)
            seen = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, -math.inf).expand(len(sinks), -1, -1)
            mask = torch.cat([seen, sinks.to(q.dtype)], dim=-1)
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal, scale=self.softmax_scale, enable_gqa=q.shape[1] != k.shape[1]
        )
        return out.permute(2, 0, 1, 3)

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None
    ) -> dict[str, Any]:
        """The sinks, which are split over the tensor-parallel ranks like the heads."""
        if self.softmax_offset is None:
            return {}
        return make_sharded_tensors_for_checkpoint(
            {"softmax_offset": self.softmax_offset},
            prefix,
            {"softmax_offset": 0},
            sharded_offsets,
            tp_group=self.tp_group,
            dp_cp_group=ensure_metadata_has_dp_cp_group(metadata)["dp_cp_group"],
        )

    def _attend_over_context(self, q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor:
        group = self.cp_group
        assert group is not None
        size, rank = group.size(), group.rank()
        k, v = _GatherSequence.apply(k, group), _GatherSequence.apply(v, group)
        held = torch.cat([zigzag_indices(lengths, size, r) for r in range(size)]).to(q.device)
        in_order = torch.argsort(held)  # undoes the zigzag: keys and values in the order of the sequence
        k, v = k[in_order], v[in_order]
        position = zigzag_indices(lengths, size, rank).to(q.device)
        out, start, local_start = [], 0, 0
        for length in lengths:
            local = slice(local_start, local_start + length // size)
            segment = slice(start, start + length)
            mask = self._visible(position[local], torch.arange(start, start + length, device=q.device))
            out.append(self._softmax(q[local], k[segment], v[segment], mask=mask))
            start, local_start = segment.stop, local.stop
        return torch.cat(out)
