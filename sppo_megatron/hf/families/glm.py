"""GLM-4.5 and later mixtures of that type."""

from __future__ import annotations

from typing import Any

from sppo_megatron.hf.architecture import Architecture
from sppo_megatron.hf.families import sigmoid_router
from sppo_megatron.hf.families.decoder import head_dim_of, read_decoder
from sppo_megatron.hf.families.family import Family
from sppo_megatron.hf.families.fields import ConfigFields, names
from sppo_megatron.hf.rope import read_rope, softmax_scale


def _read_glm4_moe(hf_config: Any) -> Architecture:
    head_dim = head_dim_of(hf_config)
    rope = read_rope(hf_config, head_dim, partial=True)
    return read_decoder(
        hf_config,
        qkv_bias=bool(hf_config.attention_bias),
        qk_norm=bool(hf_config.use_qk_norm),
        rotary_inv_freq=rope.inv_freq,
        softmax_scale=softmax_scale(rope, head_dim, hf_config.model_type),
        longest_sequence=rope.longest_sequence,
        mixture=sigmoid_router.read_sigmoid_mixture(hf_config),
    )


GLM4_MOE = Family(
    _read_glm4_moe,
    ConfigFields(
        read=sigmoid_router.FIELDS | names("attention_bias use_qk_norm partial_rotary_factor"), only=sigmoid_router.ONLY
    ),
    sigmoid_router.LAYER,
    untrained=sigmoid_router.layers_beyond,
)
