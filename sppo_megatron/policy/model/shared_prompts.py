"""Megatron-Core's layers on packs whose responses share their prompt's tokens (`sppo_megatron.batch.shared_prompts`).

To Megatron the pack is one sequence whose tokens have positions of their own: `ExplicitPositions` gives the rotary
angles of these, and the core attention knows what a token sees. All else works on each token by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from sppo_megatron.batch.collate import MicroBatch
from sppo_megatron.batch.shared_prompts import Segments
from sppo_megatron.errors import ConfigError
from sppo_megatron.megatron_cpu.attention import TorchAttention
from sppo_megatron.megatron_cpu.prefix_attention import prefix_attention


@dataclass
class SharedPromptParams(PackedSeqParams):
    """One sequence to Megatron. position_ids: [t]. segments: what a token sees."""

    position_ids: Tensor | None = None
    segments: Segments | None = None

    @cached_property
    def of_segments(self) -> tuple[Tensor, Tensor, Tensor]:
        """For attention over packed keys: cu_seqlens of queries and of keys, int32; the place of each key, int64."""
        assert self.position_ids is not None and self.segments is not None
        s, device = self.segments, self.position_ids.device
        own, first, prompt = torch.tensor([s.own, s.first, s.prompt]).to(device, non_blocking=True)
        with_prompt = own + prompt
        begins, ends = own.cumsum(0) - own, with_prompt.cumsum(0)
        total = sum(s.lengths_of_keys)
        # Where key j of a segment lies: first + j in the prompt, then begins + (j - prompt).
        number = torch.repeat_interleave(with_prompt, output_size=total)
        within = torch.arange(total, device=device) - (ends - with_prompt)[number]
        places = torch.where(within < prompt[number], first[number] + within, (begins - prompt)[number] + within)
        return _cu_seqlens(own), _cu_seqlens(with_prompt), places


def _cu_seqlens(lengths: Tensor) -> Tensor:
    return nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)


def shared_prompt_params(batch: MicroBatch) -> SharedPromptParams:
    """batch: with segments."""
    total = batch.tokens.shape[1]
    whole = torch.tensor([0, total], dtype=torch.int32).to(batch.tokens.device, non_blocking=True)
    return SharedPromptParams(
        "thd", *(whole,) * 4, total, total, position_ids=batch.position_ids[0], segments=batch.segments
    )


class ExplicitPositions(nn.Module):
    """A rotary embedding that gives a `SharedPromptParams` the angles of its positions, one row a token."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner: Any = inner

    def get_rotary_seq_len(self, context: Any, block: Any, hidden: Any, config: Any, params: Any) -> Any:
        """What Megatron hands to `forward`."""
        if isinstance(params, SharedPromptParams):
            return params
        return self.inner.get_rotary_seq_len(context, block, hidden, config, params)

    def forward(self, length: int | SharedPromptParams, **options: Any) -> Tensor:
        if not isinstance(length, SharedPromptParams):
            return self.inner(length, **options)
        assert length.position_ids is not None and length.segments is not None
        # A segment's last position is that of its last key; what only fills the pack is a segment from 0, too.
        return self.inner(max(length.segments.lengths_of_keys), **options)[length.position_ids]


class SharedPromptAttention(TorchAttention):
    """In plain torch."""

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
        if not isinstance(packed_seq_params, SharedPromptParams):
            return super().forward(query, key, value, attention_mask, attn_mask_type, attention_bias, packed_seq_params)
        s = packed_seq_params.segments
        assert s is not None
        segments = list(zip(s.own, s.first, s.prompt, strict=True))
        q, k, v = (t.unsqueeze(1) for t in (query, key, value))
        if self.keys_before is None and q.shape[-1] == v.shape[-1] and q.device.type == "cpu":
            repeats = q.shape[2] // k.shape[2]
            k, v = (t.repeat_interleave(repeats, 2) for t in (k, v))
            q, k, v = (t.permute(1, 2, 0, 3) for t in (q, k, v))
            out = prefix_attention(q, k, v, segments, self.softmax_scale).permute(2, 0, 1, 3)
        else:
            out = self._attend_each(q, k, v, segments)
        return out.squeeze(1).flatten(1) if self.is_latent else out.flatten(2)

    def _attend_each(self, q: Tensor, k: Tensor, v: Tensor, segments: list[tuple[int, int, int]]) -> Tensor:
        out, start = [], 0
        for length, first, prompt in segments:
            own = slice(start, start + length)
            if not prompt:
                out.append(self._attend(q[own], k[own], v[own], causal=True))
            else:
                keys, values = (torch.cat((t[first : first + prompt], t[own])) for t in (k, v))
                positions = torch.arange(prompt + length, device=q.device)
                out.append(self._softmax(q[own], keys, values, mask=self._visible(positions[prompt:], positions)))
            start += length
        return torch.cat(out)


def transformer_engine_attention() -> type:
    """The same by Transformer Engine: a response's queries over copies of its prompt's keys and its own, the causal
    mask aligned at the last of both."""
    from megatron.core.extensions.transformer_engine import TEDotProductAttention

    class TESharedPromptAttention(TEDotProductAttention):
        def __init__(
            self, config: Any, layer_number: int, attn_mask_type: AttnMaskType, attention_type: str, **options: Any
        ) -> None:
            # Queries and keys of different lengths are cross attention there.
            super().__init__(config, layer_number, attn_mask_type, "cross", **options)

        def forward(
            self,
            query: Tensor,
            key: Tensor,
            value: Tensor,
            attention_mask: Tensor | None,
            attn_mask_type: AttnMaskType,
            attention_bias: Tensor | None = None,
            packed_seq_params: PackedSeqParams | None = None,
            **options: Any,
        ) -> Tensor:
            if not isinstance(packed_seq_params, SharedPromptParams):
                return super().forward(
                    query, key, value, attention_mask, attn_mask_type, attention_bias, packed_seq_params, **options
                )
            segments = packed_seq_params.segments
            assert segments is not None
            of_queries, of_keys, places = packed_seq_params.of_segments
            # Megatron's enum of masks lacks this one: it is given to Transformer Engine's own forward by name.
            return super(TEDotProductAttention, self).forward(
                query,
                key.index_select(0, places),
                value.index_select(0, places),
                qkv_format="thd",
                attn_mask_type="padding_causal_bottom_right",
                cu_seqlens_q=of_queries,
                cu_seqlens_kv=of_keys,
                max_seqlen_q=max(segments.own),
                max_seqlen_kv=max(segments.lengths_of_keys),
            )

    return TESharedPromptAttention


def share_rotary_positions(chunk: GPTModel) -> None:
    """Every rotary embedding of the chunk, the layers' own of multi-latent attention among them."""
    for module in list(chunk.modules()):
        rotary = getattr(module, "rotary_pos_emb", None)
        if isinstance(rotary, nn.Module) and not isinstance(rotary, ExplicitPositions):
            module.rotary_pos_emb = ExplicitPositions(rotary)


def check_shared_prompts(config: TransformerConfig) -> None:
    """Raises ConfigError if sharing prompts would change what this model learns."""
    if config.softmax_type != "vanilla":
        raise ConfigError(
            "train.shared_prompts can't be had with attention sinks, as gpt-oss has them: set it to false"
        )
    if config.num_moe_experts is None:
        return
    for key, value in (
        ("model.moe_aux_loss_coeff", config.moe_aux_loss_coeff),
        ("model.moe_expert_bias_update_rate", config.moe_router_bias_update_rate),
    ):
        if value:
            raise ConfigError(
                f"train.shared_prompts counts the tokens of a shared prompt once where experts are balanced, as "
                f"{key}={value} asks for: set one of the two to false or 0"
            )
