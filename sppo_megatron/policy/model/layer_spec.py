"""Which modules a layer is made of: Transformer Engine's if it is installed, else plain torch ones."""

from __future__ import annotations

from megatron.core.extensions.transformer_engine import TENorm
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset

from sppo_megatron.megatron_cpu.attention import TorchAttention
from sppo_megatron.megatron_cpu.norm import TorchNorm
from sppo_megatron.parallel.fused_kernels import has_transformer_engine
from sppo_megatron.policy.model.router import Router


def decoder_spec(config: TransformerConfig, vp_stage: int | None, pp_rank: int) -> TransformerBlockSubmodules:
    """The layers of one model chunk and the norm after them."""
    first = get_transformer_layer_offset(config, vp_stage, pp_rank)
    count = get_num_layers_to_build(config, vp_stage, pp_rank)
    dense, mixture = _layer_spec(config, None), _layer_spec(config, config.num_moe_experts)
    return TransformerBlockSubmodules(
        layer_specs=[mixture if _is_mixture(config, layer) else dense for layer in range(first, first + count)],
        layer_norm=TENorm if has_transformer_engine() else TorchNorm,
    )


def _is_mixture(config: TransformerConfig, layer: int) -> bool:
    frequency = config.moe_layer_freq
    return config.num_moe_experts is not None and bool(frequency[layer] if isinstance(frequency, list) else True)


def _layer_spec(config: TransformerConfig, num_experts: int | None) -> ModuleSpec:
    if has_transformer_engine():
        layer = get_gpt_layer_with_transformer_engine_spec(
            num_experts=num_experts, moe_grouped_gemm=config.moe_grouped_gemm, qk_layernorm=config.qk_layernorm
        )
    else:
        layer = get_gpt_layer_local_spec(
            num_experts=num_experts, normalization=config.normalization, qk_layernorm=config.qk_layernorm
        )
        layer.submodules.input_layernorm = layer.submodules.pre_mlp_layernorm = TorchNorm
        attention = layer.submodules.self_attention.submodules
        attention.core_attention = TorchAttention
        if config.qk_layernorm:
            attention.q_layernorm = attention.k_layernorm = TorchNorm
        if num_experts is not None:
            # Stored under the names that Transformer Engine's layers have: there a mixture's norm isn't fused.
            layer.submodules.sharded_state_dict_keys_map = {"input_layernorm.": "self_attention.linear_qkv.layer_norm_"}
    if num_experts is not None:
        layer.submodules.mlp.keywords["submodules"].router = Router
    return layer
