"""What configs of all families say alike."""

from __future__ import annotations

from typing import Any

from sppo_megatron.errors import ConfigError
from sppo_megatron.hf.architecture import Architecture, MixtureOfExperts
from sppo_megatron.hf.rope import read_rope, softmax_scale


def read_decoder(hf_config: Any, **others: Any) -> Architecture:
    """A decoder with grouped queries. others: fields of the architecture that the family reads by itself."""
    head_dim = head_dim_of(hf_config)
    fields: dict[str, Any] = {
        "family": hf_config.model_type,
        "num_layers": hf_config.num_hidden_layers,
        "hidden_size": hf_config.hidden_size,
        "ffn_hidden_size": hf_config.intermediate_size,
        "num_attention_heads": hf_config.num_attention_heads,
        "num_query_groups": hf_config.num_key_value_heads,
        "head_dim": head_dim,
        "vocab_size": hf_config.vocab_size,
        "max_position_embeddings": hf_config.max_position_embeddings,
        "norm_epsilon": hf_config.rms_norm_eps,
        "qkv_bias": False,
        "qk_norm": False,
        "tied_embeddings": bool(hf_config.tie_word_embeddings),
        "initializer_range": getattr(hf_config, "initializer_range", 0.02),
        "windows": windows_of(hf_config),
    }
    if "rotary_inv_freq" not in others:
        rope = read_rope(hf_config, head_dim)
        fields |= {
            "rotary_inv_freq": rope.inv_freq,
            "longest_sequence": rope.longest_sequence,
            "softmax_scale": softmax_scale(rope, head_dim, hf_config.model_type),
        }
    return Architecture(**(fields | others))


def head_dim_of(hf_config: Any) -> int:
    return getattr(hf_config, "head_dim", None) or hf_config.hidden_size // hf_config.num_attention_heads


def windows_of(hf_config: Any) -> list[int | None]:
    """By the type of each layer; a family whose config has no types slides in every layer, if it slides."""
    window = getattr(hf_config, "sliding_window", None) or None
    types = getattr(hf_config, "layer_types", None)
    if types is not None:
        unknown = set(types) - {"full_attention", "sliding_attention"}
        if unknown:
            raise ConfigError(f"the {hf_config.model_type} config has layers of {', '.join(sorted(unknown))}")
        windows = [window if kind == "sliding_attention" else None for kind in types]
    else:
        windows = [window] * hf_config.num_hidden_layers
    if all(found is None or found >= hf_config.max_position_embeddings for found in windows):
        return []  # a window as long as the context is none
    return windows


def read_softmax_mixture(
    hf_config: Any, num_experts: int, *, normalizes_topk: bool, shared: int | None = None
) -> MixtureOfExperts | None:
    """Top-k of a softmax. shared: hidden size of the shared expert, which has a gate."""
    step = getattr(hf_config, "decoder_sparse_step", 1)
    dense = getattr(hf_config, "mlp_only_layers", None) or ()
    layers = [
        layer not in dense and (layer + 1) % step == 0 and num_experts > 0
        for layer in range(hf_config.num_hidden_layers)
    ]
    if not any(layers):
        return None
    if normalizes_topk and hf_config.num_experts_per_tok == 1:
        raise ConfigError(
            f"the {hf_config.model_type} config routes to one expert whose probability is made 1: "
            "its router gets no gradient, which is not supported"
        )
    return MixtureOfExperts(
        num_experts=num_experts,
        num_experts_per_token=hf_config.num_experts_per_tok,
        ffn_hidden_size=getattr(hf_config, "moe_intermediate_size", None) or hf_config.intermediate_size,
        shared_ffn_hidden_size=shared,
        shared_gate=shared is not None,
        normalizes_topk=normalizes_topk,
        aux_loss_coeff=hf_config.router_aux_loss_coef,
        layers=layers,
    )
