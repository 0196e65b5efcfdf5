"""A model's own rotary frequencies in Megatron-Core's layers, two kinds of them if layers with a window have others."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.models.gpt import GPTModel
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.utils import is_layer_window_attention
from torch import Tensor

from sppo_megatron.hf.architecture import Architecture


class PairedRotaryEmbedding(RotaryEmbedding):
    """Angles [s, 1, 1, 2·d]: those of layers without a window, then those of layers with one."""

    inv_freq: Tensor
    local_inv_freq: Tensor

    def get_emb(self, max_seq_len: int, offset: int = 0) -> Tensor:
        whole, self.inv_freq = self.inv_freq, self.local_inv_freq
        local = super().get_emb(max_seq_len, offset)
        self.inv_freq = whole
        return torch.cat((super().get_emb(max_seq_len, offset), local), dim=-1)


class PairedRotaryAttention(SelfAttention):
    """Takes its half of a `PairedRotaryEmbedding`'s angles."""

    def forward(self, *args: Any, rotary_pos_emb: Tensor, **kwargs: Any) -> Any:
        c = self.config
        is_local = is_layer_window_attention(c.window_size, c.window_attn_skip_freq, self.layer_number)
        whole, local = rotary_pos_emb.chunk(2, dim=-1)
        return super().forward(*args, rotary_pos_emb=local if is_local else whole, **kwargs)


def set_rotary_frequencies(chunk: GPTModel, architecture: Architecture, groups: ProcessGroupCollection) -> None:
    """Every rotary embedding of the chunk gets the architecture's frequencies; multi-latent layers have their own."""
    if architecture.local_rotary_inv_freq is not None:
        c = chunk.config
        paired = PairedRotaryEmbedding(
            architecture.head_dim, 1.0, use_cpu_initialization=c.use_cpu_initialization, cp_group=groups.cp
        )
        paired.local_inv_freq = architecture.local_rotary_inv_freq.to(paired.inv_freq.device)
        chunk.rotary_pos_emb = paired
    for rotary in rotary_embeddings(chunk):
        rotary.inv_freq = architecture.rotary_inv_freq.to(rotary.inv_freq.device)


def rotary_embeddings(chunk: GPTModel) -> list[RotaryEmbedding]:
    return [module for module in chunk.modules() if isinstance(module, RotaryEmbedding)]
