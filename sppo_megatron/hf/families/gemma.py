"""The text of Gemma 3."""

from __future__ import annotations

import math
from typing import Any

from sppo_megatron.errors import ConfigError
from sppo_megatron.hf.architecture import Architecture
from sppo_megatron.hf.families.decoder import head_dim_of, read_decoder
from sppo_megatron.hf.families.family import Family, LayerNames
from sppo_megatron.hf.families.fields import ConfigFields, names
from sppo_megatron.hf.rope import read_rope


def _read_gemma3(hf_config: Any) -> Architecture:
    """Layers with a window have rotary frequencies of their own, whatever the window's size."""
    head_dim, types = head_dim_of(hf_config), hf_config.layer_types
    whole, local = (read_rope(hf_config, head_dim, layer_type=kind) for kind in ("full_attention", "sliding_attention"))
    if (whole.scaling, local.scaling) != (1, 1) or whole.longest_sequence or local.longest_sequence:
        raise ConfigError("the gemma3_text config's rope is neither default nor linear, which is not supported")
    return read_decoder(
        hf_config,
        qk_norm=True,
        rotary_inv_freq=whole.inv_freq,
        local_rotary_inv_freq=local.inv_freq,
        windows=[hf_config.sliding_window if kind == "sliding_attention" else None for kind in types],
        softmax_scale=hf_config.query_pre_attn_scalar**-0.5,
        activation="gelu_tanh",
        post_norms=True,
        zero_centered_norms=True,
        embedding_scale=math.sqrt(hf_config.hidden_size),
    )


GEMMA3_TEXT = Family(
    _read_gemma3,
    ConfigFields(
        read=names("sliding_window layer_types query_pre_attn_scalar"),
        harmless=names("sliding_window_pattern rope_local_base_freq"),  # read by transformers
        only={
            "hidden_activation": ("gelu_pytorch_tanh",),
            "attention_bias": (False,),
            "final_logit_softcapping": (None,),
            "attn_logit_softcapping": (None,),
            "use_bidirectional_attention": (False,),
        },
    ),
    LayerNames(
        mlp_norm="pre_feedforward_layernorm",
        attention_post_norm="post_attention_layernorm",
        mlp_post_norm="post_feedforward_layernorm",
    ),
)
