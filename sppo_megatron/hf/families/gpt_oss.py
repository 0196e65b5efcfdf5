"""gpt-oss: attention with sinks, biased experts whose activation is limited, weights in MXFP4."""

from __future__ import annotations

from typing import Any

from sppo_megatron.errors import ConfigError
from sppo_megatron.hf.architecture import Architecture
from sppo_megatron.hf.families.decoder import read_decoder, read_softmax_mixture
from sppo_megatron.hf.families.family import ExpertNames, Family, LayerNames
from sppo_megatron.hf.families.fields import ConfigFields, names


def _read_gpt_oss(hf_config: Any) -> Architecture:
    method = (getattr(hf_config, "quantization_config", None) or {}).get("quant_method")
    if method not in (None, "mxfp4"):
        raise ConfigError(f"the gpt_oss config uses quantization_config of {method}: only mxfp4 is supported")
    return read_decoder(
        hf_config,
        qkv_bias=True,
        linear_biases=True,
        sinks=True,
        activation="quick_gelu",
        activation_clamp=float(hf_config.swiglu_limit),
        up_offset=1.0,
        mixture=read_softmax_mixture(hf_config, hf_config.num_local_experts, normalizes_topk=True),
    )


GPT_OSS = Family(
    _read_gpt_oss,
    ConfigFields(
        read=names(
            """sliding_window layer_types num_local_experts num_experts num_experts_per_tok router_aux_loss_coef
            swiglu_limit quantization_config"""
        ),
        harmless=names("experts_per_token initial_context_length"),  # said again elsewhere
        only={"attention_bias": (True,), "swiglu_alpha": (1.702,)},
    ),
    LayerNames(experts=ExpertNames(router="router", stacked=True)),
)
