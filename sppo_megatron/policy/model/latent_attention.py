"""Multi-latent attention whose down-projections are cut over tensor-parallel ranks, with the right gradients."""

from __future__ import annotations

import torch
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    gather_from_tensor_model_parallel_region,
    scatter_to_sequence_parallel_region,
)
from megatron.core.transformer.multi_latent_attention import MLASelfAttention
from torch import Tensor


class SplitLatentAttention(MLASelfAttention):
    """Megatron-Core gathers the key's rotated part and gives each rank's heads the same one, but doesn't add the ranks'
    gradients of it: 0.19 is right for down-projections that every rank holds whole alone. Here they are added."""

    def _qkv_down_projection(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """hidden_states [s, b, h] -> the queries' part as Megatron's own, and whole keys and values [s, b, latent]."""
        q_compressed, key_value = super()._qkv_down_projection(hidden_states)
        group = self.pg_collection.tp
        if group.size() == 1:
            return q_compressed, key_value
        key_value = gather_from_tensor_model_parallel_region(key_value, group=group)
        if self.config.sequence_parallel:  # the sum comes with the gathering of the rotated part
            return q_compressed, scatter_to_sequence_parallel_region(key_value, group=group)
        latent, rotated = key_value.split([self.config.kv_lora_rank, self.config.qk_pos_emb_head_dim], dim=-1)
        rotated = copy_to_tensor_model_parallel_region(rotated, group=group)
        return q_compressed, torch.cat((latent, rotated), dim=-1)
