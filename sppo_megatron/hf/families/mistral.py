"""Mistral, Mixtral and the text of Ministral 3."""

from __future__ import annotations

from typing import Any

from sppo_megatron.hf.architecture import Architecture
from sppo_megatron.hf.families.decoder import head_dim_of, read_decoder, read_softmax_mixture
from sppo_megatron.hf.families.family import ExpertNames, Family, LayerNames
from sppo_megatron.hf.families.fields import ConfigFields, names
from sppo_megatron.hf.rope import read_rope, softmax_scale


def _read_mixtral(hf_config: Any) -> Architecture:
    mixture = read_softmax_mixture(hf_config, hf_config.num_local_experts, normalizes_topk=True)
    return read_decoder(hf_config, mixture=mixture)


def _read_ministral3(hf_config: Any) -> Architecture:
    """Queries are scaled by their position: by 1 + β ln(1 + ⌊position / original context⌋), 1 in the original one."""
    head_dim, kind = head_dim_of(hf_config), hf_config.model_type
    rope = read_rope(hf_config, head_dim, also_read=frozenset({"llama_4_scaling_beta"}))
    parameters = hf_config.rope_parameters
    scales = bool(parameters.get("llama_4_scaling_beta"))
    return read_decoder(
        hf_config,
        rotary_inv_freq=rope.inv_freq,
        softmax_scale=softmax_scale(rope, head_dim, kind),
        longest_sequence=parameters["original_max_position_embeddings"] if scales else rope.longest_sequence,
    )


MISTRAL = Family(read_decoder, ConfigFields(read=names("sliding_window")))
MINISTRAL3 = Family(_read_ministral3, ConfigFields(read=names("sliding_window")))
MIXTRAL = Family(
    _read_mixtral,
    ConfigFields(
        read=names("sliding_window num_local_experts num_experts num_experts_per_tok router_aux_loss_coef"),
    ),
    LayerNames(experts=ExpertNames("block_sparse_moe", "w1", "w3", "w2")),
)
