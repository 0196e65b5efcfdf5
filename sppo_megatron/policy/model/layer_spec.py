"""Which modules a layer is made of: Transformer Engine's if it is installed, else plain torch ones."""

from __future__ import annotations

from typing import Any

from megatron.core.extensions.transformer_engine import TEColumnParallelLinear, TENorm
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset

from sppo_megatron.hf.architecture import Architecture
from sppo_megatron.megatron_cpu.attention import TorchAttention
from sppo_megatron.megatron_cpu.norm import TorchNorm
from sppo_megatron.parallel.fused_kernels import has_transformer_engine
from sppo_megatron.policy.model.biased_experts import ExpertDownProjection
from sppo_megatron.policy.model.latent_attention import SplitLatentAttention
from sppo_megatron.policy.model.post_norm import with_post_norm
from sppo_megatron.policy.model.rotary import PairedRotaryAttention
from sppo_megatron.policy.model.router import Router
from sppo_megatron.policy.model.shared_prompts import SharedPromptAttention, transformer_engine_attention


def decoder_spec(
    config: TransformerConfig,
    vp_stage: int | None,
    pp_rank: int,
    architecture: Architecture | None = None,
    *,
    shares_prompts: bool = False,
) -> TransformerBlockSubmodules:
    """The layers of one model chunk and the norm after them. architecture: None for a plain decoder."""
    first = get_transformer_layer_offset(config, vp_stage, pp_rank)
    count = get_num_layers_to_build(config, vp_stage, pp_rank)
    dense, mixture = (
        _layer_spec(config, experts, architecture, shares_prompts) for experts in (None, config.num_moe_experts)
    )
    return TransformerBlockSubmodules(
        layer_specs=[mixture if _is_mixture(config, layer) else dense for layer in range(first, first + count)],
        layer_norm=_norm(),
    )


def _norm() -> Any:
    return TENorm if has_transformer_engine() else TorchNorm


def _is_mixture(config: TransformerConfig, layer: int) -> bool:
    frequency = config.moe_layer_freq
    return config.num_moe_experts is not None and bool(frequency[layer] if isinstance(frequency, list) else True)


def _layer_spec(
    config: TransformerConfig, num_experts: int | None, architecture: Architecture | None, shares_prompts: bool
) -> ModuleSpec:
    layer = (_transformer_engine_layer if has_transformer_engine() else _torch_layer)(config, num_experts)
    if num_experts is not None:
        layer.submodules.mlp.keywords["submodules"].router = Router
    if shares_prompts:
        attention = transformer_engine_attention() if has_transformer_engine() else SharedPromptAttention
        layer.submodules.self_attention.submodules.core_attention = attention
    if config.multi_latent_attention:
        layer.submodules.self_attention.module = SplitLatentAttention
    if architecture is not None and architecture.local_rotary_inv_freq is not None:
        layer.submodules.self_attention.module = PairedRotaryAttention
    if architecture is not None and architecture.post_norms:
        for parts, name in (
            (layer.submodules.self_attention.submodules, "linear_proj"),
            (layer.submodules.mlp.keywords["submodules"], "linear_fc2"),
        ):
            setattr(parts, name, with_post_norm(getattr(parts, name), _norm()))
    return layer


def _transformer_engine_layer(config: TransformerConfig, num_experts: int | None) -> ModuleSpec:
    layer = get_gpt_layer_with_transformer_engine_spec(
        num_experts=num_experts,
        moe_grouped_gemm=config.moe_grouped_gemm,
        qk_layernorm=config.qk_layernorm,
        multi_latent_attention=config.multi_latent_attention,
    )
    if config.multi_latent_attention:  # cut over ranks as in the torch layers, not held whole by each
        attention = layer.submodules.self_attention.submodules
        attention.linear_q_down_proj = attention.linear_kv_down_proj = TEColumnParallelLinear
    return layer


def _torch_layer(config: TransformerConfig, num_experts: int | None) -> ModuleSpec:
    layer = get_gpt_layer_local_spec(
        num_experts=num_experts,
        normalization=config.normalization,
        qk_layernorm=config.qk_layernorm,
        multi_latent_attention=config.multi_latent_attention,
    )
    layer.submodules.input_layernorm = layer.submodules.pre_mlp_layernorm = TorchNorm
    if num_experts is not None and config.add_bias_linear:
        layer.submodules.mlp.keywords["submodules"].experts.keywords["submodules"].linear_fc2 = ExpertDownProjection
    attention = layer.submodules.self_attention.submodules
    attention.core_attention = TorchAttention
    if config.multi_latent_attention:
        attention.q_layernorm = attention.kv_layernorm = TorchNorm
    elif config.qk_layernorm:
        attention.q_layernorm = attention.k_layernorm = TorchNorm
    # What is stored has the names of Transformer Engine's layers, which fuse a norm into the product after it; not that
    # before a mixture or before multi-latent attention.
    fused = {} if num_experts is not None else {"pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_"}
    if config.multi_latent_attention:
        for of in ("q", "kv"):
            fused[f"self_attention.{of}_layernorm."] = f"self_attention.linear_{of}_up_proj.layer_norm_"
    else:
        fused["input_layernorm."] = "self_attention.linear_qkv.layer_norm_"
    layer.submodules.sharded_state_dict_keys_map = fused
    return layer
