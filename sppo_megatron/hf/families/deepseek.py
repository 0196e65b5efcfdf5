"""DeepSeek-V3: multi-latent attention and experts chosen within groups."""

from __future__ import annotations

from typing import Any

from sppo_megatron.errors import ConfigError
from sppo_megatron.hf.architecture import Architecture, LatentAttention
from sppo_megatron.hf.families import sigmoid_router
from sppo_megatron.hf.families.decoder import read_decoder
from sppo_megatron.hf.families.family import Family
from sppo_megatron.hf.families.fields import ConfigFields, names
from sppo_megatron.hf.rope import read_rope


def _read_deepseek_v3(hf_config: Any) -> Architecture:
    rope = read_rope(hf_config, hf_config.qk_rope_head_dim)
    if rope.scaling != 1:
        raise ConfigError(
            f"the {hf_config.model_type} config scales rotary components (mscale is not mscale_all_dim): not supported"
        )
    parameters = hf_config.rope_parameters
    scaled = parameters.get("rope_type", "default") != "default"
    latent = LatentAttention(
        q_rank=hf_config.q_lora_rank,
        kv_rank=hf_config.kv_lora_rank,
        qk_dim=hf_config.qk_nope_head_dim,
        rope_dim=hf_config.qk_rope_head_dim,
        v_dim=hf_config.v_head_dim,
        rotary_scaling_factor=float(parameters["factor"]) if scaled else 1.0,
        mscale_all_dim=float(parameters.get("mscale_all_dim") or 0.0) if scaled else 0.0,
    )
    return read_decoder(
        hf_config,
        num_query_groups=hf_config.num_attention_heads,
        head_dim=latent.qk_dim + latent.rope_dim,
        rotary_inv_freq=rope.inv_freq,
        longest_sequence=rope.longest_sequence,
        latent=latent,
        mixture=sigmoid_router.read_sigmoid_mixture(hf_config),
    )


DEEPSEEK_V3 = Family(
    _read_deepseek_v3,
    ConfigFields(
        read=sigmoid_router.FIELDS
        | names("kv_lora_rank q_lora_rank qk_rope_head_dim v_head_dim qk_nope_head_dim qk_head_dim"),
        harmless=names("ep_size seq_aux aux_loss_alpha"),  # where experts lay, and a loss of the pre-training
        only=sigmoid_router.ONLY
        | {
            "attention_bias": (False,),
            "rope_interleave": (True,),
            "scoring_func": ("sigmoid",),
            "topk_method": ("noaux_tc",),
            "moe_layer_freq": (1,),
        },
    ),
    sigmoid_router.LAYER,
    untrained=sigmoid_router.layers_beyond,
)
