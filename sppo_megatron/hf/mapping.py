"""The table that ties Megatron parameter names to Hugging Face tensors.

Names are global: layers and experts are numbered over the whole model, whatever rank holds them. A parameter has one
name in Megatron's local layers, which the table uses, and may have another with Transformer Engine: it fuses a norm
into the linear layer after it and groups the experts of a rank.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from sppo_megatron.hf.architecture import Architecture, MixtureOfExperts
from sppo_megatron.hf.families import FAMILIES
from sppo_megatron.hf.tensor_layouts import GatedMlp, QueryKeyValue, Replicated, RowParallel, TensorLayout, Vocabulary

EMBEDDING = "embedding.word_embeddings.weight"
OUTPUT_LAYER = "output_layer.weight"

# Transformer Engine's name of a norm -> the name in Megatron's local layers.
FUSED_NORM_NAMES = {
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "mlp.linear_fc1.layer_norm_weight": "pre_mlp_layernorm.weight",
}
# Transformer Engine's grouped experts: `weightN` is the weight of expert N.
_GROUPED_EXPERT = re.compile(r"\.mlp\.experts\.(linear_fc[12])\.weight(\d+)$")
_EXPERT = re.compile(r"\.mlp\.experts\.local_experts\.(\d+)\.")


def parameter_layouts(architecture: Architecture, padded_vocab_size: int) -> dict[str, TensorLayout]:
    """Every parameter of the whole model, by its global name in Megatron's local layers, in the model's order.

    With tied embeddings there is no output layer: the embedding's entry serves both.
    """
    a = architecture
    vocabulary = (a.vocab_size, a.hidden_size)
    layouts: dict[str, TensorLayout] = {
        EMBEDDING: Vocabulary("model.embed_tokens.weight", vocabulary, padded_vocab_size)
    }
    for layer in range(a.num_layers):
        layouts |= _layer_layouts(a, layer)
    layouts["decoder.final_layernorm.weight"] = Replicated("model.norm.weight", (a.hidden_size,))
    if not a.tied_embeddings:
        layouts[OUTPUT_LAYER] = Vocabulary("lm_head.weight", vocabulary, padded_vocab_size)
    return layouts


def canonical_name(megatron_name: str) -> str:
    """The name in Megatron's local layers of a parameter that Transformer Engine may have fused or grouped."""
    for fused, local in FUSED_NORM_NAMES.items():
        if megatron_name.endswith(fused):
            return megatron_name.removesuffix(fused) + local
    return _GROUPED_EXPERT.sub(r".mlp.experts.local_experts.\2.\1.weight", megatron_name)


def expert_index(megatron_name: str) -> int | None:
    """Which expert of its layer a parameter belongs to (global, or local, as the name is); None outside of experts."""
    found = _EXPERT.search(canonical_name(megatron_name))
    return int(found[1]) if found else None


def with_expert_index(megatron_name: str, index: int) -> str:
    """The canonical name with another index of the expert."""
    return _EXPERT.sub(f".mlp.experts.local_experts.{index}.", canonical_name(megatron_name))


def hf_shapes(layouts: Mapping[str, TensorLayout]) -> dict[str, tuple[int, ...]]:
    """Every Hugging Face tensor of the model with its shape, in the model's order."""
    return {
        name: shape for layout in layouts.values() for name, shape in zip(layout.hf_names, layout.shapes, strict=True)
    }


def _layer_layouts(a: Architecture, layer: int) -> dict[str, TensorLayout]:
    megatron, hf = f"decoder.layers.{layer}.", f"model.layers.{layer}."
    is_mixture = a.mixture is not None and a.mixture.layers[layer]
    norm = Replicated(hf + "post_attention_layernorm.weight", (a.hidden_size,))
    return (
        _attention_layouts(a, megatron, hf)
        | {megatron + "pre_mlp_layernorm.weight": norm}
        | (_mixture_layouts(a, megatron + "mlp.", hf) if is_mixture else _dense_layouts(a, megatron + "mlp.", hf))
    )


def _attention_layouts(a: Architecture, megatron: str, hf: str) -> dict[str, TensorLayout]:
    attention = hf + "self_attn."

    def qkv(kind: str, hidden_size: int | None) -> QueryKeyValue:
        names = (f"{attention}q_proj.{kind}", f"{attention}k_proj.{kind}", f"{attention}v_proj.{kind}")
        return QueryKeyValue(names, a.num_attention_heads, a.num_query_groups, a.head_dim, hidden_size)

    heads = a.num_attention_heads * a.head_dim
    layouts: dict[str, TensorLayout] = {
        megatron + "input_layernorm.weight": Replicated(hf + "input_layernorm.weight", (a.hidden_size,)),
        megatron + "self_attention.linear_qkv.weight": qkv("weight", a.hidden_size),
    }
    if a.qkv_bias:
        layouts[megatron + "self_attention.linear_qkv.bias"] = qkv("bias", None)
    if a.qk_norm:
        for name in ("q", "k"):
            norm = Replicated(f"{attention}{name}_norm.weight", (a.head_dim,))
            layouts[f"{megatron}self_attention.{name}_layernorm.weight"] = norm
    projection = RowParallel(attention + "o_proj.weight", (a.hidden_size, heads))
    return layouts | {megatron + "self_attention.linear_proj.weight": projection}


def _gated_mlp(
    megatron: str, hf: tuple[str, str, str], hidden_size: int, ffn_hidden_size: int
) -> dict[str, TensorLayout]:
    """hf: the names of the gate, up and down projections."""
    gate, up, down = (f"{name}.weight" for name in hf)
    return {
        megatron + "linear_fc1.weight": GatedMlp(gate, up, (ffn_hidden_size, hidden_size)),
        megatron + "linear_fc2.weight": RowParallel(down, (hidden_size, ffn_hidden_size)),
    }


def _dense_layouts(a: Architecture, megatron: str, hf: str) -> dict[str, TensorLayout]:
    names = (hf + "mlp.gate_proj", hf + "mlp.up_proj", hf + "mlp.down_proj")
    return _gated_mlp(megatron, names, a.hidden_size, a.ffn_hidden_size)


def _mixture_layouts(a: Architecture, megatron: str, hf: str) -> dict[str, TensorLayout]:
    moe, names = a.mixture, FAMILIES[a.family].experts
    assert isinstance(moe, MixtureOfExperts) and names is not None
    block = hf + names.block + "."
    router = Replicated(f"{block}{names.router}.weight", (moe.num_experts, a.hidden_size))
    layouts: dict[str, TensorLayout] = {megatron + "router.weight": router}
    for expert in range(moe.num_experts):
        ours, theirs = f"{megatron}experts.local_experts.{expert}.", f"{block}experts.{expert}."
        projections = (theirs + names.gate, theirs + names.up, theirs + names.down)
        layouts |= _gated_mlp(ours, projections, a.hidden_size, moe.ffn_hidden_size)
    if moe.shared_ffn_hidden_size is not None:
        ours, theirs = megatron + "shared_experts.", f"{block}{names.shared}."
        projections = (theirs + names.gate, theirs + names.up, theirs + names.down)
        layouts |= _gated_mlp(ours, projections, a.hidden_size, moe.shared_ffn_hidden_size)
        layouts[ours + "gate_weight"] = Replicated(f"{block}{names.shared_gate}.weight", (1, a.hidden_size))
    return layouts
