"""Qwen2, Qwen2.5, Qwen3 and their mixtures of experts."""

from __future__ import annotations

from typing import Any

from sppo_megatron.hf.architecture import Architecture
from sppo_megatron.hf.families.decoder import read_decoder, read_softmax_mixture
from sppo_megatron.hf.families.family import ExpertNames, Family, LayerNames
from sppo_megatron.hf.families.fields import ConfigFields, names

# max_window_layers and use_sliding_window are what transformers makes layer_types from.
_WINDOWS = names("sliding_window layer_types use_sliding_window max_window_layers")
_MIXTURE = names(
    """num_experts num_local_experts num_experts_per_tok moe_intermediate_size norm_topk_prob decoder_sparse_step
    mlp_only_layers router_aux_loss_coef"""
)


def _read_qwen2(hf_config: Any) -> Architecture:
    return read_decoder(hf_config, qkv_bias=True)


def _read_qwen3(hf_config: Any) -> Architecture:
    return read_decoder(hf_config, qk_norm=True)


def _read_qwen2_moe(hf_config: Any) -> Architecture:
    mixture = read_softmax_mixture(
        hf_config,
        hf_config.num_experts,
        normalizes_topk=bool(hf_config.norm_topk_prob),
        shared=hf_config.shared_expert_intermediate_size,
    )
    return read_decoder(hf_config, qkv_bias=bool(hf_config.qkv_bias), mixture=mixture)


def _read_qwen3_moe(hf_config: Any) -> Architecture:
    mixture = read_softmax_mixture(hf_config, hf_config.num_experts, normalizes_topk=bool(hf_config.norm_topk_prob))
    return read_decoder(hf_config, qk_norm=True, mixture=mixture)


QWEN2 = Family(_read_qwen2, ConfigFields(read=_WINDOWS))
QWEN3 = Family(_read_qwen3, ConfigFields(read=_WINDOWS, only={"attention_bias": (False,)}))
QWEN2_MOE = Family(
    _read_qwen2_moe,
    ConfigFields(read=_WINDOWS | _MIXTURE | names("shared_expert_intermediate_size qkv_bias")),
    LayerNames(experts=ExpertNames(shared="shared_expert", shared_gate="shared_expert_gate")),
)
QWEN3_MOE = Family(
    _read_qwen3_moe,
    ConfigFields(read=_WINDOWS | _MIXTURE, only={"attention_bias": (False,)}),
    LayerNames(experts=ExpertNames()),
)
